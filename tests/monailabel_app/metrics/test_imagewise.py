"""Scan-level AUROC and rank p-values."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.imagewise import rank_p_value, scan_auroc


def test_auroc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    healthy, patients = rng.integers(0, 6, 40), rng.integers(2, 9, 25)
    expected = roc_auc_score([0] * 40 + [1] * 25, np.concatenate([healthy, patients]))
    assert scan_auroc(healthy, patients) == pytest.approx(expected)


def test_auroc_extremes():
    assert scan_auroc([1, 2], [3, 4]) == 1
    assert scan_auroc([3, 4], [1, 2]) == 0
    assert scan_auroc([5, 5], [5]) == 0.5
    assert math.isnan(scan_auroc([], [1]))
    assert math.isnan(scan_auroc([1], []))


def test_p_value_counts_healthy_scans_at_least_as_high():
    healthy = [1.0, 2.0, 3.0, 4.0]
    assert rank_p_value(10, healthy) == pytest.approx(1 / 5)
    assert rank_p_value(3, healthy) == pytest.approx(3 / 5)
    assert rank_p_value(0, healthy) == 1
    assert rank_p_value(0, []) == 1


def test_p_values_of_healthy_scans_are_valid():
    """P(p <= a) <= a for every a, when the scan is exchangeable with the reference scans."""
    scores = np.random.default_rng(0).normal(size=20)
    values = np.array([rank_p_value(scores[i], np.delete(scores, i)) for i in range(20)])
    for level in (0.05, 0.1, 0.5):
        assert (values <= level + 1e-12).mean() <= level + 1e-12


def test_nan_scores_are_refused():
    with pytest.raises(InvalidSettings, match="NaN"):
        scan_auroc([1, np.nan], [2])
    with pytest.raises(InvalidSettings, match="NaN"):
        rank_p_value(np.nan, [1])
