"""Anomalies without a change of grey values: histograms stay, tissue moves."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.preprocessing.iso_intense import deform_ball, shuffle_blocks, shuffle_voxels

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def brain():
    """Smooth stripes in a box, zero outside."""
    x, y, z = np.meshgrid(*(np.arange(24),) * 3, indexing="ij")
    mask = np.zeros((24, 24, 24), bool)
    mask[2:22, 2:22, 2:22] = True
    image = 0.5 + 0.2 * np.sin(x / 2.0) * np.cos(y / 3.0) + 0.005 * z
    return np.where(mask, image, 0).astype(np.float32), mask


def place(mask):
    where = np.zeros_like(mask)
    where[7:14, 8:15, 9:16] = True
    return where


def test_shuffled_voxels_keep_the_histogram_exactly_and_nothing_else_changes(brain):
    image, mask = brain
    where = place(mask)
    made = shuffle_voxels(image, where, np.random.default_rng(0))
    assert np.array_equal(np.sort(made[where]), np.sort(image[where]))
    assert np.array_equal(made[~where], image[~where])
    assert (made[where] != image[where]).mean() > 0.9


def test_shuffled_blocks_keep_the_histogram_and_no_block_stays(brain):
    image, mask = brain
    made, moved = shuffle_blocks(image, place(mask), np.random.default_rng(0))
    assert np.array_equal(np.sort(made[moved]), np.sort(image[moved]))
    assert not (moved & ~place(mask)).any()
    assert np.array_equal(made[~moved], image[~moved])
    corner = tuple(np.argwhere(moved).min(axis=0))
    block = tuple(slice(c, c + 2) for c in corner)
    assert not np.array_equal(made[block], image[block])


def test_a_place_without_two_blocks_is_refused(brain):
    image, mask = brain
    where = np.zeros_like(mask)
    where[5:7, 5:7, 5:7] = True
    with pytest.raises(InvalidSettings, match="two blocks"):
        shuffle_blocks(image, where, np.random.default_rng(0))


@pytest.mark.parametrize("strength", [0.8, -0.8])
def test_a_deformation_keeps_the_histogram_nearly_and_its_surface_exactly(brain, strength):
    image, mask = brain
    made, ball = deform_ball(image, mask, (11, 11, 11), radius_mm=14.0, strength=strength, spacing_mm=SPACING)
    assert np.array_equal(made[~ball], image[~ball])
    assert image[ball].min() - 1e-6 <= made[ball].min()
    assert made[ball].max() <= image[ball].max() + 1e-6
    before, after = np.sort(image[ball]), np.sort(made[ball])
    drift = np.abs(before - after).mean()
    assert drift < 0.25 * before.std()  # a lesion of 25 % contrast drifts by more than its own deviation here
    assert np.abs(made - image)[ball].max() > 0.05
    assert np.abs(before * 1.25 - before).mean() > 2 * drift


def test_swelling_draws_the_middle_apart(brain):
    _, mask = brain
    x = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], mask.shape).copy()
    wide, _ = deform_ball(x, mask, (11, 11, 11), radius_mm=14.0, strength=0.8, spacing_mm=SPACING)
    tight, _ = deform_ball(x, mask, (11, 11, 11), radius_mm=14.0, strength=-0.8, spacing_mm=SPACING)
    assert wide[13, 11, 11] < 13 < tight[13, 11, 11]


def test_nothing_is_drawn_from_outside_the_brain(brain):
    image, mask = brain
    made, ball = deform_ball(image, mask, (3, 11, 11), radius_mm=12.0, strength=-0.8, spacing_mm=SPACING)
    assert made[ball].min() > 0.9 * image[mask].min()
    assert not made[~mask].any()


def test_a_strength_that_folds_is_refused(brain):
    image, mask = brain
    with pytest.raises(InvalidSettings, match="strength"):
        deform_ball(image, mask, (11, 11, 11), radius_mm=12.0, strength=1.0, spacing_mm=SPACING)
