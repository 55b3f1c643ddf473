"""One generic inference task for every method, and its twin that shows bands."""

from lib.infers.anomaly import AnomalyInferTask
from lib.infers.bands import SUFFIX, BandsInferTask

__all__ = ["SUFFIX", "AnomalyInferTask", "BandsInferTask"]
