"""FROC points against the counts of masks, a flood fill and a worked example."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.metrics.froc import froc_counts, froc_curve
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.postprocessing.components import find_lesions


@pytest.fixture
def scan():
    generator = np.random.default_rng(0)
    values = generator.gamma(1.0, size=(14, 12, 10)).astype(np.float32)
    truth = generator.random(values.shape) > 0.985
    return values, truth


def flood(mask):
    """The 26-connected components as sets of voxels, by walking from voxel to voxel."""
    left, found = set(map(tuple, np.argwhere(mask))), []
    while left:
        part, border = set(), [left.pop()]
        while border:
            voxel = border.pop()
            part.add(voxel)
            near = {n for n in left if max(abs(a - b) for a, b in zip(n, voxel, strict=True)) == 1}
            left -= near
            border.extend(near)
        found.append(part)
    return found


@pytest.mark.parametrize("least", [0, 2, 4])
def test_the_counts_are_those_of_a_walk_from_voxel_to_voxel(scan, least):
    values, truth = scan
    thresholds = [1.5, 2.5, 4.0]
    counted = froc_counts(values, truth, thresholds, min_voxels=least)
    lesions = flood(truth)
    for i, threshold in enumerate(thresholds):
        parts = [part for part in flood(values > threshold) if len(part) >= least]
        marked = set().union(*parts)
        assert counted.detected[i] == sum(bool(lesion & marked) for lesion in lesions)
        assert counted.false_positives[i] == sum(not any(part & lesion for lesion in lesions) for part in parts)
    assert counted.lesions == len(lesions)


def test_every_point_is_the_product_s_mask_at_that_threshold(scan):
    values, truth = scan
    thresholds = [0.5, 1.0, 2.0, 3.0, 5.0, 50.0]
    counted = froc_counts(values, truth, thresholds, min_voxels=3)
    for i, threshold in enumerate(thresholds):
        mask, _ = find_lesions(values, np.ones_like(truth), np.eye(4), threshold=threshold, min_volume_mm3=3)
        expected = count_lesions(mask, truth)
        assert counted.detected[i] == expected.detected
        assert counted.false_positives[i] == expected.false_positives


def test_in_a_healthy_scan_everything_is_a_false_alarm():
    values = np.zeros((9, 9, 9))
    values[1, 1, 1], values[4, 4, 4], values[7:9, 7, 7] = 3, 2, 4
    counted = froc_counts(values, np.zeros(values.shape), [0, 2, 3.5, 9])
    assert counted.lesions == 0
    np.testing.assert_array_equal(counted.false_positives, [3, 2, 1, 0])
    np.testing.assert_array_equal(counted.detected, [0, 0, 0, 0])


def test_a_curve_pools_lesions_and_averages_false_alarms_over_scans():
    """Two patients with 3 and 1 lesions; strict, middle and loose threshold."""
    detected = np.array([[0, 1, 3], [1, 1, 1]])
    alarms = np.array([[0, 1, 4], [0, 0, 2]])
    assert froc_curve([3, 1], detected, alarms) == [(0.0, 0.25), (0.5, 0.5), (3.0, 1.0)]
    assert froc_curve([3, 1], detected, np.array([[5, 2, 8]]))[0] == (2.0, 0.5)
    assert froc_curve([0, 0], detected, alarms) == []
    assert froc_curve([3, 1], detected, np.zeros((0, 3))) == []


def test_bad_arguments_are_refused(scan):
    values, truth = scan
    with pytest.raises(InvalidVolume, match="one shape"):
        froc_counts(values[1:], truth, [1])
    with pytest.raises(InvalidVolume, match="NaN"):
        froc_counts(np.full(truth.shape, np.nan), truth, [1])
    with pytest.raises(InvalidSettings, match="NaN"):
        froc_counts(values, truth, [np.nan])
    with pytest.raises(InvalidSettings, match="thresholds"):
        froc_curve([1], np.zeros((1, 2)), np.zeros((1, 3)))
