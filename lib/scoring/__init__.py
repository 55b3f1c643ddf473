"""What MONAI Label calls scoring: work on the whole datastore, whose results go into the scans' information."""

from lib.scoring.anomaly_scores import NAME as ANOMALY_SCORES
from lib.scoring.anomaly_scores import AnomalyScores

__all__ = ["ANOMALY_SCORES", "AnomalyScores"]
