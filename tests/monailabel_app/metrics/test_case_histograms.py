"""Small histograms give the metrics of the exact ones, and add up and weigh like patients."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidVolume
from monailabel_app.metrics.case_histograms import BINS, average_precisions, best_dices, count_voxels
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
