"""A scan that deviates everywhere is brought back towards the calibration; one like the calibration's stays."""

import numpy as np
import pytest

from monailabel_app.calibration import background as module
from monailabel_app.calibration.background import LARGEST_RATIO, background_of
from monailabel_app.calibration.calibrated_map import ScoreCalibration
from monailabel_app.calibration.drift import DriftReference, drift_reference
from monailabel_app.calibration.voxel_statistics import VoxelStatistics

SHAPE = (24, 24, 24)
INSIDE = np.zeros(SHAPE, dtype=bool)
INSIDE[2:-2, 2:-2, 2:-2] = True


def matched(values, reference, shape=SHAPE, inside=INSIDE, score="evidence"):
    """``background.matched`` with a calibration that has this reference."""
    statistics = VoxelStatistics(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    drift = {} if reference is None else {"standard": reference}
    known = ScoreCalibration(statistics, {}, {}, drift=drift)
    return module.matched(values, inside, known, score=score, smoothing="standard", erosion_mm=0.0)


def head(seed, width=1.0, lesion=0.0):
    """|normal| voxels, wider on another scanner, with a bright cube of 216 of 8000 voxels."""
    values = np.abs(np.random.default_rng(seed).normal(0, width, SHAPE)).astype(np.float32) * INSIDE
    if lesion:
        values[8:14, 8:14, 8:14] += lesion
    return values


@pytest.fixture(scope="module")
def reference():
    return drift_reference([head(seed)[INSIDE] for seed in range(6)], [f"p{seed}" for seed in range(6)])


@pytest.mark.parametrize("width", [0.6, 1.0, 1.4, 1.9])
def test_scans_like_the_calibration_s_stay_to_the_voxel(reference, width):
    values = head(7, width, lesion=6.0)
    kept, background = matched(values, reference)
    assert kept is values
    assert background.divided_by == 1.0
    assert background.sentence() == ""


@pytest.mark.parametrize("width", [3.0, 8.0])
def test_wider_scans_end_at_twice_the_calibration_s_width(reference, width):
    values = head(8, width)
    made, background = matched(values, reference)
    assert background.ratio == pytest.approx(width, rel=0.05)
    assert background_of(made[INSIDE], reference).ratio == pytest.approx(LARGEST_RATIO, rel=1e-5)
    assert made.dtype == np.float32
    assert np.array_equal(np.argsort(made[INSIDE], kind="stable"), np.argsort(values[INSIDE], kind="stable"))
    assert f"{background.ratio:.1f} times" in background.sentence()


def test_a_threshold_marks_less_of_a_healthy_head_from_elsewhere_and_still_the_lesion(reference):
    threshold = 2.6
    values = head(9, 3.0, lesion=30.0)
    made, _ = matched(values, reference)
    cube = np.zeros(SHAPE, dtype=bool)
    cube[8:14, 8:14, 8:14] = True
    assert (values > threshold)[INSIDE & ~cube].mean() > 2 * (made > threshold)[INSIDE & ~cube].mean()
    assert (made > threshold)[cube].mean() > 0.9


def test_where_healthy_scans_differ_as_much_nothing_changes(reference):
    varied = drift_reference(
        [head(seed, width)[INSIDE] for seed, width in enumerate((0.3, 0.6, 1.0, 3.0))], list("abcd")
    )
    background = matched(head(13, 3.0), varied)[1]
    assert background.ratio > LARGEST_RATIO
    assert background.divided_by == 1.0
    assert matched(head(13, 3.0), reference)[1].divided_by > 1.4


def test_a_lesion_of_a_tenth_of_the_brain_changes_the_ratio_little(reference):
    values = head(10)
    values[2:-2, 2:-2, 2:4] += 9.0
    assert background_of(values[INSIDE], reference).ratio < 1.3


def test_what_cannot_be_told_changes_nothing(reference):
    values = head(11, 9.0)
    nothing = DriftReference((0.0,) * 101, (0.1,))
    for known in (None, nothing):
        kept, background = matched(values, known)
        assert kept is values
        assert background is None
    assert matched(values, reference, inside=np.zeros(SHAPE, dtype=bool))[1] is None


def test_combined_scores_stay_as_their_members_maps_were_matched_before(reference):
    values = head(14, 9.0)
    kept, background = matched(values, reference, score="fisher")
    assert kept is values
    assert background is None
    assert matched(values, reference)[1].divided_by > 4


def test_single_slices_stay_as_they_are(reference):
    values = head(12, 9.0)
    kept, background = matched(values, reference, shape=(*SHAPE[:2], 1))
    assert kept is values
    assert background is None
    one = slice(12, 13)
    assert matched(values[..., one], reference, inside=INSIDE[..., one])[1] is None
