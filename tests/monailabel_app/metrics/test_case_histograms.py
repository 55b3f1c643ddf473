"""Small histograms give the metrics of the exact ones, and add up and weigh like patients."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from monailabel_app.errors import InvalidVolume
from monailabel_app.metrics.case_histograms import (
    BINS,
    aurocs,
    average_precisions,
    best_dices,
    count_voxels,
    dices_above,
    first_bin_above,
    precision_recall,
    quantile_bin,
    threshold_of,
)
from monailabel_app.metrics.voxelwise import ScoreHistogram, average_precision, best_dice


def _case(seed: int, shape=(20, 20, 20)):
    generator = np.random.default_rng(seed)
    truth = np.zeros(shape, bool)
    truth[4:9, 5:10, 6:10] = True
    scores = np.abs(generator.normal(size=shape) + 1.5 * truth).astype(np.float32)
    counted = np.ones(shape, bool)
    counted[:2] = False
    return np.where(generator.random(shape) < 0.3, 0, scores).astype(np.float32), truth, counted


def test_the_metrics_are_those_of_the_exact_histogram():
    cases = [_case(seed) for seed in range(4)]
    exact = ScoreHistogram()
    for scores, truth, counted in cases:
        exact.add(scores, truth, counted)
    small = np.stack([count_voxels(*case) for case in cases]).sum(axis=0)
    assert average_precisions(small) == pytest.approx(average_precision(exact), abs=2e-3)
    assert best_dices(small) == pytest.approx(best_dice(exact).dice, abs=2e-3)


def test_every_counted_voxel_is_in_one_bin_whatever_its_score():
    scores = np.array([0.0, 1e-9, 2.0**-6, 1.0, 127.9, 128.0, 1e30], np.float32).reshape(7, 1, 1)
    truth = np.zeros((7, 1, 1), bool)
    truth[3] = True
    counts = count_voxels(scores, truth, np.ones_like(truth))
    assert counts.shape == (2, BINS)
    assert counts.sum() == 7
    assert counts[1, 0] == 2
    assert counts[1, 1] == 1
    assert counts[1, -1] == 3  # 127.9, 128 and 1e30 share the last bin
    assert counts[0].sum() == 1


def test_a_case_counted_twice_weighs_like_two_patients():
    one, two = (count_voxels(*_case(seed)) for seed in (1, 2))
    weights = np.array([[2.0, 1.0], [1.0, 0.0]])
    resampled = np.einsum("rn,nkb->rkb", weights, np.stack([one, two]))
    expected = [average_precisions(one + one + two), average_precisions(one)]
    np.testing.assert_allclose(average_precisions(resampled), expected)


def test_without_a_lesion_there_is_no_precision():
    scores, truth, counted = _case(0)
    counts = count_voxels(scores, np.zeros_like(truth), counted)
    assert np.isnan(average_precisions(counts))
    assert np.isnan(best_dices(counts))


def test_a_map_that_marks_nothing_has_no_dice():
    _, truth, counted = _case(0)
    assert best_dices(count_voxels(np.zeros(truth.shape), truth, counted)) == 0


@pytest.mark.parametrize("bad", [np.full((20, 20, 20), np.nan), np.full((20, 20, 20), -1.0), np.zeros((3, 3, 3))])
def test_a_map_that_cannot_be_counted_is_refused(bad):
    _, truth, counted = _case(0)
    with pytest.raises(InvalidVolume, match="expected"):
        count_voxels(bad, truth, counted)


def test_ranks_and_curves_are_those_of_scikit_learn():
    scores, truth, counted = _case(3)
    counts, scores, truth = count_voxels(scores, truth, counted), scores[counted], truth[counted]
    scores = np.where(scores < 2.0**-6, 0, scores)  # the lowest bin holds ties
    assert aurocs(counts) == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)
    assert average_precisions(counts) == pytest.approx(average_precision_score(truth, scores), abs=2e-3)
    rounded = np.array([first_bin_above(np.nextafter(score, np.float32(9e9))) for score in scores])
    precision, recall, _ = precision_recall_curve(truth, rounded)
    found = precision_recall(counts)
    assert {tuple(np.round(p, 9)) for p in found} <= {
        tuple(np.round(p, 9)) for p in zip(recall, precision, strict=True)
    }
    assert 60 < len(found) <= 200
    assert found[-1] == pytest.approx((1, truth.mean()))
    assert np.array(found)[:, 0].tolist() == sorted(r for r, _ in found)


def test_a_short_curve_keeps_every_point():
    counts = np.zeros((2, BINS))
    counts[0, [300, 100]], counts[1, [200, 100]] = [1, 1], [1, 5]
    assert precision_recall(counts) == [(0.5, 1.0), (0.5, 0.5), (1.0, 0.25)]
    assert precision_recall(counts, points=2) == [(0.5, 1.0), (1.0, 0.25)]
    assert precision_recall(np.zeros((2, BINS))) == []


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.5, 1.7, 3.0])
def test_the_dice_at_a_threshold_is_the_direct_one(threshold):
    scores, truth, counted = _case(4)
    first = first_bin_above(threshold)
    found = dices_above(count_voxels(scores, truth, counted))[first]
    direct = f1_score(truth[counted], scores[counted] >= threshold_of(first))
    assert found == pytest.approx(direct, abs=1e-12)
    assert threshold <= threshold_of(first) <= max(threshold * 1.004, 2.0**-6)


def test_the_best_dice_is_the_highest_over_all_thresholds():
    counts = count_voxels(*_case(5))
    assert best_dices(counts) == pytest.approx(dices_above(counts)[1:].max())
    assert np.isnan(dices_above(np.zeros((2, BINS)))).all()
    assert first_bin_above(1e9) == BINS - 1
    assert first_bin_above(0) == 0


def test_a_healthy_quantile_leaves_its_share_above_and_weighs_every_scan_the_same():
    generator = np.random.default_rng(0)
    empty = np.zeros((20, 20, 20), bool)
    values = generator.gamma(2.0, size=empty.shape).astype(np.float32)
    counts = count_voxels(values, empty, ~empty)[1]
    threshold = threshold_of(quantile_bin(counts[None], 0.005))
    assert threshold == pytest.approx(np.quantile(values, 0.995), rel=0.01)
    assert (values >= threshold).mean() <= 0.005
    small = np.zeros(BINS)
    small[2000] = 1
    assert quantile_bin(np.stack([small, 10_000 * np.roll(small, -1000)]), 0.5) == 1001
    assert quantile_bin(small[None], 0.5) == 2001
    with pytest.raises(InvalidVolume, match="healthy voxels"):
        quantile_bin(np.zeros((3, BINS)), 0.01)
