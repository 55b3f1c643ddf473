"""Training tasks for MONAI Label."""

from lib.trainers.healthy import HealthyTrainTask

__all__ = ["HealthyTrainTask"]
