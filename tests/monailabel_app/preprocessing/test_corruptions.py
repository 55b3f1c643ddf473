"""Corruptions of a head: each changes what it is named after."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.preprocessing.corruptions import CLEAN, CORRUPTIONS, head_on_ras_axes, motion, repainted
from monailabel_app.types import Volume
from tests.monailabel_app import synthetic


@pytest.fixture(scope="module")
def head():
    volume, brain, _ = synthetic.scan()
    return head_on_ras_axes(volume, brain.mask, 3)


def test_every_corruption_gives_another_image_or_a_mask_on_one_grid(head):
    for name, corrupt in CORRUPTIONS.items():
        volume, brain = corrupt(head)
        assert np.isfinite(volume.data).all(), name
        changed = volume.data.shape != head.volume.data.shape or not np.allclose(volume.data, head.volume.data)
        assert (changed or brain is not None) == (name != CLEAN), name
        assert brain is None or brain.mask.shape == volume.shape, name


def test_a_head_in_any_orientation_is_turned_onto_ras_axes(head):
    flipped = head.volume.data[0].transpose(2, 0, 1)[::-1]
    affine = np.zeros((4, 4))
    affine[:, 0], affine[:, 1], affine[:, 2] = -head.volume.affine[:, 2], *head.volume.affine[:, :2].T
    affine[:, 3] = head.volume.affine[:, 3] + head.volume.affine[:, 2] * (flipped.shape[0] - 1)
    mask = head.brain.transpose(2, 0, 1)[::-1]
    turned = head_on_ras_axes(Volume(np.ascontiguousarray(flipped)[None], affine), mask, 3)
    assert np.array_equal(turned.data, head.data)
    assert np.array_equal(turned.brain, head.brain)
    assert np.allclose(turned.volume.affine, head.volume.affine)


def test_thick_slices_are_constant_over_their_thickness_and_keep_the_mean(head):
    made = CORRUPTIONS["slices of 6 mm"](head)[0].data[0]
    assert np.allclose(made[..., 0:3].std(axis=2), 0, atol=1e-3)
    assert np.isclose(made.mean(), head.data.mean(), rtol=1e-4)


def test_a_painted_t2_turns_the_order_of_tissues_round(head):
    made = repainted(head, "t2")[0].data[0]
    dark = head.data < np.percentile(head.data[head.brain], 5)
    bright = head.data > np.percentile(head.data[head.brain], 90)
    inner = head.brain & (head.data > 0)
    assert made[inner & dark].mean() > 1.5 * made[inner & bright].mean()


def test_a_bias_field_brightens_one_side_only(head):
    ratio = CORRUPTIONS["bias field 100 %"](head)[0].data[0][head.brain] / np.maximum(head.data[head.brain], 1)
    assert ratio.max() > 1.4
    assert ratio.min() < 0.7


def test_motion_leaves_the_coarse_head_and_moves_the_detail(head):
    made = motion(head, 8.0)[0].data[0]
    coarse = [ndimage.gaussian_filter1d(values, 6, axis=1)[head.brain] for values in (made, head.data)]
    fine = [(values - ndimage.gaussian_filter1d(values, 2, axis=1))[head.brain] for values in (made, head.data)]
    assert np.corrcoef(*coarse)[0, 1] > 0.95
    assert np.corrcoef(*fine)[0, 1] < 0.9
