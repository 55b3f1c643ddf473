"""Patch scores: the distances themselves, what they see and do not see, and where they are strongest."""

import numpy as np
import pytest
import torch
from scipy import stats

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring import SCORES
from monailabel_app.scoring.wasserstein import (
    mse_patch_map,
    strongest_patch,
    wasserstein_distance,
    wasserstein_map,
)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image, reconstruction = rng.random((2, 20, 24, 3), dtype=np.float32)
    mask = np.zeros((20, 24, 3), bool)
    mask[2:18, 3:22, :2] = True
    return image, reconstruction, mask


def blob(shape, centre, width, height):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (height * np.exp(-(((grid - np.array(centre)) / width) ** 2).sum(-1))).astype(np.float32)


def test_the_distance_is_that_of_scipy():
    first, second = torch.rand(5, 37, dtype=torch.float64), torch.randn(5, 37, dtype=torch.float64)
    expected = [stats.wasserstein_distance(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    np.testing.assert_allclose(wasserstein_distance(first, second), expected, rtol=1e-12)


def test_the_maps_are_the_distances_of_the_patches_around_each_voxel(pair):
    image, reconstruction, mask = pair
    wasserstein, squared = wasserstein_map(*pair, patch=5), mse_patch_map(*pair, patch=5)
    inside = [np.pad(v * mask, ((2, 2), (2, 2), (0, 0))) for v in (image, reconstruction)]
    for x, y, z in [(2, 3, 0), (9, 11, 1), (17, 21, 1)]:
        first, second = (v[x : x + 5, y : y + 5, z].ravel() for v in inside)
        assert wasserstein[x, y, z] == pytest.approx(stats.wasserstein_distance(first, second), rel=1e-5)
        assert squared[x, y, z] == pytest.approx(((first - second) ** 2).mean(), rel=1e-5)
    assert (wasserstein[~mask] == 0).all()
    assert (squared[~mask] == 0).all()
    assert wasserstein.dtype == squared.dtype == np.float32


def test_only_the_squared_distance_sees_that_intensities_changed_places():
    image = np.random.default_rng(1).random((9, 9, 1), dtype=np.float32)
    moved, mask = image[::-1, ::-1].copy(), np.ones((9, 9, 1), bool)
    assert wasserstein_map(image, moved, mask)[4, 4, 0] == pytest.approx(0, abs=1e-7)
    assert mse_patch_map(image, moved, mask)[4, 4, 0] > 0.05
    brighter = image + 0.25
    assert wasserstein_map(image, brighter, mask)[4, 4, 0] == pytest.approx(0.25, rel=1e-5)


def test_what_lies_outside_the_brain_does_not_count(pair):
    image, reconstruction, mask = pair
    other = np.where(mask, image, 7).astype(np.float32)
    for score in (wasserstein_map, mse_patch_map):
        np.testing.assert_array_equal(score(image, reconstruction, mask), score(other, reconstruction, mask))


@pytest.mark.parametrize("score", ["wasserstein", "mse"])
def test_the_strongest_patch_lies_on_the_lesion(score):
    shape = (40, 48, 6)
    mask = np.ones(shape, bool)
    reconstruction = np.full(shape, 0.5, np.float32)
    image = reconstruction + blob(shape, (27, 13, 4), 3.0, 0.4) + blob(shape, (10, 35, 1), 3.0, 0.2)
    found = strongest_patch(image, reconstruction, mask, patch=12, score=score)
    assert found.low[2] == 4
    assert found.high == (found.low[0] + 12, found.low[1] + 12, 5)
    assert all(low <= centre < high for low, centre, high in zip(found.low, (27, 13, 4), found.high, strict=True))
    first, second = (
        v[found.low[0] : found.high[0], found.low[1] : found.high[1], 4].ravel() for v in (image, reconstruction)
    )
    distance = stats.wasserstein_distance(first, second) if score == "wasserstein" else ((first - second) ** 2).mean()
    assert found.value == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_coarse_steps_find_what_looking_everywhere_finds(seed):
    rng = np.random.default_rng(seed)
    shape = (36, 40, 4)
    reconstruction = np.full(shape, 0.4, np.float32)
    image = reconstruction + 0.02 * rng.normal(size=shape).astype(np.float32)
    for _ in range(3):
        image += blob(shape, rng.uniform(0, shape), rng.uniform(2, 4), rng.uniform(0.1, 0.4))
    coarse, everywhere = (strongest_patch(image, reconstruction, np.ones(shape, bool), stride=s) for s in (4, 1))
    assert coarse == everywhere


def test_patches_at_the_edge_of_the_brain_need_a_quarter_of_it():
    image, reconstruction = np.zeros((2, 32, 32, 1), np.float32)
    mask = np.zeros((32, 32, 1), bool)
    mask[8:24, 8:24] = True
    image[8, 8] = 1.0  # at the corner: only patches with enough brain may claim it
    low = strongest_patch(image, reconstruction, mask, patch=8).low
    assert mask[low[0] : low[0] + 8, low[1] : low[1] + 8].mean() >= 0.25
    with pytest.raises(InvalidVolume, match="none"):
        strongest_patch(image, reconstruction, np.zeros_like(mask), patch=8)
    with pytest.raises(InvalidVolume, match="at least 40"):
        strongest_patch(image, reconstruction, mask, patch=40)


def test_the_maps_are_scores_of_any_reconstruction(pair):
    np.testing.assert_array_equal(SCORES["wasserstein"](*pair), wasserstein_map(*pair))
    np.testing.assert_array_equal(SCORES["mse_patch"](*pair), mse_patch_map(*pair))


def test_bad_settings_are_refused(pair):
    with pytest.raises(InvalidSettings, match="odd"):
        wasserstein_map(*pair, patch=4)
    with pytest.raises(InvalidSettings, match="wasserstein, mse"):
        strongest_patch(*pair, score="l1")
