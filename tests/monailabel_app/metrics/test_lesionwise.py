"""Lesion recall and false positives on worked examples."""

import math

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.metrics.lesionwise import LesionCounts, count_lesions


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    """Three lesions of 8, 8 and 1 voxels; three predicted blobs: half of the first, one in the void, a speck
    on the second."""
    predicted, truth = np.zeros((2, 12, 12, 12), bool)
    truth[1:3, 1:3, 1:3] = truth[6:8, 6:8, 6:8] = truth[10, 1, 1] = True
    predicted[1:3, 1:3, 1] = True
    predicted[6, 6, 6] = True
    predicted[10, 10, 10] = True
    return predicted, truth


def test_one_shared_voxel_detects_by_default(masks):
    assert count_lesions(*masks) == LesionCounts(lesions=3, detected=2, predicted=3, false_positives=1)


@pytest.mark.parametrize(
    ("min_overlap", "detected"), [(0.1, 2), (0.125, 2), (0.2, 1), (0.5, 1), (0.6, 0), (1.0, 0)]
)
def test_the_overlap_criterion_is_a_share_of_the_lesion(masks, min_overlap, detected):
    counts = count_lesions(*masks, min_overlap=min_overlap)
    assert counts.detected == detected
    assert counts.false_positives == 1


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    truth = np.zeros((4, 4, 4), bool)
    truth[1, 1, 1] = truth[2, 2, 2] = True
    assert count_lesions(truth, truth) == LesionCounts(lesions=1, detected=1, predicted=1, false_positives=0)


def test_counts_of_scans_add_up(masks):
    empty = np.zeros((12, 12, 12), bool)
    total = count_lesions(*masks) + count_lesions(masks[0], empty)
    assert total.scans == 2
    assert total.recall == pytest.approx(2 / 3)
    assert total.false_positives_per_scan == 2


def test_empty_masks(masks):
    predicted, truth = masks
    empty = np.zeros_like(truth)
    assert count_lesions(empty, truth).recall == 0
    assert count_lesions(predicted, empty).false_positives == 3
    assert math.isnan(count_lesions(predicted, empty).recall)


def test_a_prediction_of_everything_finds_all_lesions(masks):
    counts = count_lesions(np.ones_like(masks[1]), masks[1], min_overlap=1)
    assert (counts.recall, counts.false_positives) == (1, 0)


def test_bad_arguments_are_refused(masks):
    with pytest.raises(InvalidSettings, match="min_overlap"):
        count_lesions(*masks, min_overlap=1.5)
    with pytest.raises(InvalidVolume, match="one shape"):
        count_lesions(masks[0][1:], masks[1])
