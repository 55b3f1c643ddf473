"""One generic inference task for every method."""

from lib.infers.anomaly import AnomalyInferTask

__all__ = ["AnomalyInferTask"]
