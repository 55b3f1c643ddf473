"""FROC points against a walk from voxel to voxel and a worked example."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.froc import froc_curve
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.postprocessing.components import find_lesions


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
def test_the_points_are_those_of_a_walk_from_voxel_to_voxel(least):
    """Two scans, three thresholds: the product's masks and counts, against sets of voxels."""
    generator = np.random.default_rng(0)
    values = generator.gamma(1.0, size=(2, 12, 11, 9))
    truth = generator.random(values.shape) > 0.985
    thresholds = [1.5, 2.5, 4.0]
    counts, expected = [], []
    for scan, lesions_of in zip(values, truth, strict=True):
        masks = [
            find_lesions(scan, np.ones_like(lesions_of), np.eye(4), threshold=t, min_volume_mm3=least)[0]
            for t in thresholds
        ]
        counts.append([count_lesions(mask, lesions_of) for mask in masks])
        lesions = flood(lesions_of)
        parts = [[part for part in flood(scan > t) if len(part) >= least] for t in thresholds]
        expected.append(
            [
                (
                    sum(not any(part & lesion for lesion in lesions) for part in found),
                    sum(any(part & lesion for part in found) for lesion in lesions),
                    len(lesions),
                )
                for found in parts
            ]
        )
    curve = froc_curve(
        [scan[0].lesions for scan in counts],
        np.array([[c.detected for c in scan] for scan in counts]),
        np.array([[c.false_positives for c in scan] for scan in counts]),
    )
    walked = np.array(expected).sum(axis=0)
    points = [(false / 2, found / lesions) for false, found, lesions in walked]
    np.testing.assert_allclose(curve, points)


def test_a_curve_pools_lesions_and_averages_false_alarms_over_scans():
    """Two patients with 3 and 1 lesions; strict, middle and loose threshold; alarms may fall."""
    detected = np.array([[0, 1, 3], [1, 1, 1]])
    alarms = np.array([[0, 1, 4], [0, 0, 2]])
    assert froc_curve([3, 1], detected, alarms) == [(0.0, 0.25), (0.5, 0.5), (3.0, 1.0)]
    assert froc_curve([3, 1], detected, np.array([[5, 2, 8]]))[1] == (2.0, 0.5)
    assert froc_curve([0, 0], detected, alarms) == []
    assert froc_curve([3, 1], detected, np.zeros((0, 3))) == []


def test_counts_of_other_thresholds_are_refused():
    with pytest.raises(InvalidSettings, match="thresholds"):
        froc_curve([1], np.zeros((1, 2)), np.zeros((1, 3)))
