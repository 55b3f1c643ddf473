"""Pooled voxel metrics against scikit-learn, and when there is nothing to measure."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from monailabel_app.errors import InvalidVolume
from monailabel_app.metrics.voxelwise import (
    ScoreHistogram,
    _bin_of,
    _threshold_below,
    auroc,
    average_precision,
    best_dice,
    dice,
    dice_at,
    false_positive_rate,
)

# With 3 significant digits no two scores share a bin: the histogram is exact.
SCORES = np.round(np.random.default_rng(0).normal(size=(8, 9, 10)), 2).astype(np.float32)
TRUTH = np.random.default_rng(1).random(SCORES.shape) < 1 / (1 + np.exp(3 - SCORES))


@pytest.fixture
def histogram() -> ScoreHistogram:
    return ScoreHistogram.of(SCORES, TRUTH)


def test_average_precision_and_auroc_equal_scikit_learn_with_ties(histogram):
    assert average_precision(histogram) == pytest.approx(
        average_precision_score(TRUTH.ravel(), SCORES.ravel())
    )
    assert auroc(histogram) == pytest.approx(roc_auc_score(TRUTH.ravel(), SCORES.ravel()))


def test_continuous_scores_differ_from_the_exact_values_by_rounding_only():
    rng = np.random.default_rng(2)
    truth = rng.random(50_000) < 0.02
    scores = (rng.gamma(2, size=truth.shape) + truth).astype(np.float32)
    histogram = ScoreHistogram.of(scores, truth)
    assert average_precision(histogram) == pytest.approx(average_precision_score(truth, scores), rel=2e-3)
    assert auroc(histogram) == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)


def test_best_dice_is_the_maximum_over_all_thresholds_and_its_threshold_reaches_it(histogram):
    precision, recall, _ = precision_recall_curve(TRUTH.ravel(), SCORES.ravel())
    expected = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    best = best_dice(histogram)
    assert best.dice == pytest.approx(expected)
    assert dice(best.threshold < SCORES, TRUTH) == pytest.approx(best.dice)
    assert dice_at(histogram, best.threshold) == pytest.approx(best.dice)


def test_dice_and_false_positive_rate_at_a_threshold_equal_the_direct_count(histogram):
    for threshold in (-0.5, 0.005, 1.005):
        above = threshold < SCORES
        assert dice_at(histogram, threshold) == pytest.approx(f1_score(TRUTH.ravel(), above.ravel()))
        assert false_positive_rate(histogram, threshold) == pytest.approx(above[~TRUTH].mean())


def test_adding_scans_one_by_one_equals_pooling_their_voxels(histogram):
    streamed = ScoreHistogram()
    for scores, truth in zip(SCORES, TRUTH, strict=True):
        streamed.add(scores, truth)
    halves = ScoreHistogram.of(SCORES[:3], TRUTH[:3]) + ScoreHistogram.of(SCORES[3:], TRUTH[3:])
    for other in (streamed, halves):
        np.testing.assert_array_equal(other.positives, histogram.positives)
        np.testing.assert_array_equal(other.negatives, histogram.negatives)


def test_only_brain_voxels_count():
    brain = np.zeros(SCORES.shape, bool)
    brain[2:5] = True
    inside = ScoreHistogram.of(SCORES, TRUTH, brain)
    assert average_precision(inside) == pytest.approx(average_precision_score(TRUTH[brain], SCORES[brain]))
    assert inside.prevalence == pytest.approx(TRUTH[brain].mean())


def test_bins_keep_the_order_of_all_finite_scores():
    values = np.array([-3e38, -1e3, -1.0, -1e-30, 0, 1e-30, 0.5, 1, 1e3, 3e38], np.float32)
    bins = _bin_of(values)
    assert (np.diff(bins) > 0).all()
    assert _bin_of(np.float32([-0.0])) == _bin_of(np.float32([0.0]))
    for value, index in zip(values, bins, strict=True):
        assert _threshold_below(index) < value
        assert abs(_threshold_below(index) - value) <= abs(value) * 2**-11 + 1e-38


def test_a_constant_map_knows_nothing():
    truth = np.arange(100) < 20
    histogram = ScoreHistogram.of(np.full(100, 0.7), truth)
    assert average_precision(histogram) == pytest.approx(0.2)
    assert auroc(histogram) == 0.5
    assert best_dice(histogram).dice == pytest.approx(2 * 20 / 120)


def test_a_perfect_map_reaches_one():
    truth = np.arange(100) < 20
    histogram = ScoreHistogram.of(truth.astype(float), truth)
    assert (average_precision(histogram), auroc(histogram), best_dice(histogram).dice) == (1, 1, 1)


@pytest.mark.parametrize("truth", [np.zeros(5, bool), np.ones(5, bool)])
def test_undefined_metrics_are_nan(truth):
    histogram = ScoreHistogram.of(np.arange(5.0), truth)
    assert math.isnan(auroc(histogram))
    if truth.any():
        assert average_precision(histogram) == 1
        assert math.isnan(false_positive_rate(histogram, 0))
    else:
        assert math.isnan(average_precision(histogram))
        assert math.isnan(best_dice(histogram).dice)
    empty = ScoreHistogram()
    assert all(
        math.isnan(v) for v in (average_precision(empty), auroc(empty), empty.prevalence, dice_at(empty, 0))
    )


def test_dice_of_masks():
    a, b = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert dice(a, np.zeros(4)) == 0
    assert math.isnan(dice(np.zeros(4), np.zeros(4)))
    with pytest.raises(InvalidVolume, match="one shape"):
        dice(a, b[:2])


def test_nan_scores_and_unequal_shapes_are_refused():
    with pytest.raises(InvalidVolume, match="NaN"):
        ScoreHistogram.of(np.array([np.nan, 1]), np.array([0, 1]))
    with pytest.raises(InvalidVolume, match="one shape"):
        ScoreHistogram.of(np.zeros(3), np.zeros(4))
