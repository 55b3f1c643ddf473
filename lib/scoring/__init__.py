"""What MONAI Label calls scoring: work on the whole datastore, whose results go into the scans' information."""

from lib.scoring.anomaly_scores import NAME as ANOMALY_SCORES
from lib.scoring.anomaly_scores import AnomalyScores
from lib.scoring.evaluate import NAME as EVALUATE
from lib.scoring.evaluate import EvaluateLabels

__all__ = ["ANOMALY_SCORES", "EVALUATE", "AnomalyScores", "EvaluateLabels"]
