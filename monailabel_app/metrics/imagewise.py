"""Scan-level scores against scan-level truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monailabel_app.errors import InvalidSettings

ScoreList = Sequence[float] | np.ndarray


def scan_auroc(healthy_scores: ScoreList, patient_scores: ScoreList) -> float:
    """Probability that a random patient scores above a random healthy scan, ties counted half.

    The Mann-Whitney form of the area under the ROC curve. With all patients but the healthy scans of one
    subgroup only it is the subgroup AUROC of Meissen et al. (sAUROC, 2023). NaN if either list is empty.
    Raises InvalidSettings for NaN among the scores.
    """
    healthy, patients = np.sort(_scores(healthy_scores)), _scores(patient_scores)
    if not len(healthy) or not len(patients):
        return float("nan")
    below = np.searchsorted(healthy, patients, side="left")
    below_or_equal = np.searchsorted(healthy, patients, side="right")
    return float((below + below_or_equal).sum() / (2 * len(healthy) * len(patients)))


def rank_p_value(score: float, healthy_scores: ScoreList) -> float:
    """(1 + number of healthy scores >= score) / (n + 1).

    The chance that a further healthy scan, exchangeable with the n held-out ones, would score this high:
    never below 1 / (n + 1), and 1 if there is nothing to compare with. Raises InvalidSettings for NaN.
    """
    healthy = _scores(healthy_scores)
    return float((1 + (healthy >= _scores([score])).sum()) / (len(healthy) + 1))


def _scores(values: ScoreList) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).ravel()
    if np.isnan(array).any():
        raise InvalidSettings(f"Expected scan scores without NaN, got {int(np.isnan(array).sum())} of them")
    return array
