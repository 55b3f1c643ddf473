"""Smoothing: what it preserves, what it removes, and that the outside of the brain has no say."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.postprocessing.smooth import gaussian_smooth, median_smooth

SHAPE = (12, 13, 14)


@pytest.fixture
def brain() -> np.ndarray:
    distance = np.linalg.norm(np.indices(SHAPE).T - np.array([6, 6, 7]), axis=-1).T
    return distance < 5


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).random(SHAPE).astype(np.float32)


def test_a_constant_map_stays_constant_up_to_the_rim(brain):
    smoothed = gaussian_smooth(np.full(SHAPE, 2.5, np.float32), brain, sigma_mm=3, spacing_mm=(1, 1, 2))
    np.testing.assert_allclose(smoothed[brain], 2.5, atol=1e-5)
    assert (smoothed[~brain] == 0).all()


def test_values_outside_the_brain_do_not_leak_in(brain, noise):
    loud = np.where(brain, noise, 1e6).astype(np.float32)
    for smooth in (
        lambda v: gaussian_smooth(v, brain, sigma_mm=2, spacing_mm=(1, 1, 1)),
        lambda v: median_smooth(v, brain, size=3),
    ):
        np.testing.assert_array_equal(smooth(loud), smooth(noise))


def test_sigma_is_in_millimetres(noise):
    everywhere = np.ones(SHAPE, bool)
    coarse = gaussian_smooth(noise, everywhere, sigma_mm=4, spacing_mm=(2, 4, 8))
    share = ndimage.gaussian_filter(np.ones(SHAPE), (2, 1, 0.5), mode="constant")
    expected = ndimage.gaussian_filter(noise.astype(float), (2, 1, 0.5), mode="constant") / share
    np.testing.assert_allclose(coarse, expected, atol=1e-5)


def test_gaussian_equals_the_literal_weighted_mean_at_one_voxel(brain, noise):
    smoothed = gaussian_smooth(noise, brain, sigma_mm=1.5, spacing_mm=(1, 1, 1))
    centre = np.array([4, 6, 8])
    offset = np.indices(SHAPE).reshape(3, -1).T - centre
    weight = np.exp(-(offset**2).sum(1) / (2 * 1.5**2)) * (np.abs(offset).max(1) <= 6) * brain.ravel()
    assert smoothed[tuple(centre)] == pytest.approx((weight * noise.ravel()).sum() / weight.sum(), abs=1e-5)


def test_zero_sigma_and_median_of_one_voxel_only_mask(brain, noise):
    expected = np.where(brain, noise, 0)
    np.testing.assert_array_equal(gaussian_smooth(noise, brain, sigma_mm=0, spacing_mm=(1, 1, 1)), expected)
    np.testing.assert_array_equal(median_smooth(noise, brain, size=1), expected)


def test_an_empty_brain_gives_zeros(noise):
    empty = np.zeros(SHAPE, bool)
    assert not gaussian_smooth(noise, empty, sigma_mm=2, spacing_mm=(1, 1, 1)).any()
    assert not median_smooth(noise, empty).any()


@pytest.mark.parametrize("size", [3, 5, (1, 3, 5)])
def test_median_equals_scipy_on_the_masked_map(brain, noise, size):
    expected = ndimage.median_filter(np.where(brain, noise, 0), size, mode="constant")
    np.testing.assert_array_equal(median_smooth(noise, brain, size=size), np.where(brain, expected, 0))


def test_median_removes_a_single_voxel_and_keeps_a_flat_region(brain):
    spike = np.ones(SHAPE, np.float32)
    spike[6, 6, 7] = 50
    smoothed = median_smooth(spike, brain, size=3)
    assert smoothed[6, 6, 7] == 1
    assert smoothed.max() == 1


def test_bad_settings_and_shapes_are_named(brain, noise):
    with pytest.raises(InvalidSettings, match="sigma_mm"):
        gaussian_smooth(noise, brain, sigma_mm=-1, spacing_mm=(1, 1, 1))
    with pytest.raises(InvalidSettings, match="spacing"):
        gaussian_smooth(noise, brain, sigma_mm=1, spacing_mm=(1, 0, 1))
    with pytest.raises(InvalidSettings, match="odd"):
        median_smooth(noise, brain, size=4)
    with pytest.raises(InvalidVolume, match="one shape"):
        median_smooth(noise[:-1], brain)
