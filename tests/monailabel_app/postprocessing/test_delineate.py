"""Regions end at a share of their own peak, and nothing that a threshold promises is lost by it."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.delineate import delineated


def blob(shape, centre, height, sigma):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return height * np.exp(-((grid - np.array(centre)) ** 2).sum(-1) / (2 * sigma**2))


def test_a_strong_focus_is_outlined_at_its_own_share_and_a_faint_one_is_kept():
    shape = (60, 30, 30)
    values = np.maximum(blob(shape, (12, 15, 15), 20.0, 3.0), blob(shape, (45, 15, 15), 3.0, 3.0))
    mask = delineated(values, (2, 2, 2)) > 1.5
    strong, faint = mask[:30], mask[30:]
    radius = 3.0 * np.sqrt(2 * np.log(1 / 0.4))
    assert strong.sum() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.1)
    assert (values > 1.5)[:30].sum() > 2 * strong.sum()
    assert (faint == (values > 1.5)[30:]).all()
    assert faint.any()


def test_no_voxel_is_added_and_masks_stay_nested():
    values = np.abs(ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((40, 40, 30)), 1.5)) * 20
    cut = delineated(values, (2, 2, 2))
    kept = cut > 0
    assert (cut[kept] == values[kept]).all()
    assert not (cut > values).any()
    for low, high in ((0.5, 1.0), (1.0, 2.0)):
        assert ((cut > low) | ~(cut > high)).all()
        # The same voxels as when only those above the threshold had been looked at.
        above = np.where(values > low, values, 0)
        assert ((delineated(above, (2, 2, 2)) > low) == (cut > low)).all()


def test_the_reach_is_in_millimetres():
    values = np.zeros((41, 1, 1), np.float32)
    values[20], values[26], values[33] = 10, 3, 3
    assert delineated(values, (2, 2, 2))[:, 0, 0].nonzero()[0].tolist() == [20, 33]
    assert delineated(values, (4, 2, 2))[:, 0, 0].nonzero()[0].tolist() == [20, 26, 33]
    assert delineated(values, (2, 2, 2), peak_share=0.3)[26] == 3


@pytest.mark.parametrize("spacing", [(2, 2, 2), (0.45, 0.45, 5.0), (1.0, 3.0, 0.8)])
def test_what_lies_around_the_brain_changes_nothing_whatever_the_spacing(spacing):
    """Against the definition, voxel by voxel of the whole grid."""
    values = np.zeros((30, 26, 22), np.float32)
    values[4:21, 5:24, 9:20] = np.random.default_rng(2).random((17, 19, 11)).astype(np.float32) ** 3
    reach = [int(12 / edge) for edge in spacing]
    expected = np.zeros_like(values)
    for at in np.argwhere(values > 0):
        around = tuple(slice(max(0, i - r), i + r + 1) for i, r in zip(at, reach, strict=True))
        at = tuple(at)
        expected[at] = values[at] if values[at] >= np.float32(0.4) * values[around].max() else 0
    np.testing.assert_array_equal(delineated(values, spacing), expected)
    assert 0 < (expected > 0).sum() < (values > 0).sum()
    assert not delineated(np.zeros((4, 4, 4), np.float32), spacing).any()


def test_a_single_slice_and_no_delineation():
    values = np.random.default_rng(1).random((20, 20, 1)).astype(np.float32)
    assert delineated(values, (2, 2, np.inf)).shape == values.shape
    assert delineated(values, (2, 2, 2), peak_share=0) is values


@pytest.mark.parametrize("wrong", [{"peak_share": 1.0}, {"peak_share": -0.1}, {"reach_mm": -1.0}, {"reach_mm": np.nan}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(InvalidSettings):
        delineated(np.ones((3, 3, 3)), (2, 2, 2), **wrong)
    with pytest.raises(InvalidSettings):
        delineated(np.ones((3, 3, 3)), (2, 0, 2))
