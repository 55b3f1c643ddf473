"""The atlas is the healthy mean and deviation at every voxel, and a brain's map is its z-score against them."""

import numpy as np
import pytest
import torch

from monailabel_app.methods import atlas_zscore
from monailabel_app.pipelines.baselines import IntensityAtlas, atlas_z
from tests.monailabel_app.synthetic import random_cache

CONFIG = atlas_zscore.Config()


def fitted(images, masks):
    model = atlas_zscore.build(CONFIG)
    model.load_state_dict(atlas_zscore.fit_cache(CONFIG, images, masks))
    return model.eval()


def maps(model, image, mask):
    return atlas_zscore.analyse(model, CONFIG, image, mask, torch.Generator()).maps


def test_the_map_counts_the_healthy_deviations_of_each_voxel_on_its_own():
    images = torch.zeros(4, 3, 3, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([100, 110, 120, 130])  # mean 115, deviation 11.18
    images[:, 1, 1, 1] = torch.tensor([0, 200, 0, 200])  # mean 100, deviation 100
    model = fitted(images, torch.ones_like(images, dtype=torch.bool))
    image = torch.zeros(3, 3, 2)
    image[0, 0, 0], image[1, 1, 1] = 137.36 / 255, 0.0
    z = maps(model, image, torch.ones(3, 3, 2, dtype=torch.bool))["atlas_z"]
    assert z[0, 0, 0] == pytest.approx(2.0, abs=0.02)
    assert z[1, 1, 1] == pytest.approx(-1.0, abs=0.01)


def test_brains_count_only_where_they_cover_a_voxel():
    images = torch.full((2, 2, 1, 1), 100, dtype=torch.uint8)
    images[1, 0] = 0
    masks = torch.ones_like(images, dtype=torch.bool)
    masks[1, 0] = False
    mean, deviation = atlas_zscore.healthy_moments(images, masks)
    assert mean[0, 0, 0] == pytest.approx(100 / 255)
    assert deviation[0, 0, 0] == pytest.approx(0.01)  # the floor: one brain has no spread


def test_the_map_is_the_baselines():
    cache = random_cache(6)
    prepared = cache.prepared(0)
    expected = atlas_z(prepared, IntensityAtlas.fit(cache.select(range(1, 6))))
    model = fitted(cache.images[1:], cache.brain_masks[1:])
    z = maps(model, torch.from_numpy(prepared.image[0]), torch.from_numpy(prepared.brain_mask))["atlas_z"].numpy()
    # Up to the 16 bits in which the atlas is kept.
    np.testing.assert_allclose(z, expected, atol=1e-2, rtol=2e-3)
    assert (z[~prepared.brain_mask] == 0).all()


def test_one_sided_maps_have_opposite_signs():
    images = torch.randint(0, 255, (5, 4, 4, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mask = torch.ones(4, 4, 2, dtype=torch.bool)
    made = maps(fitted(images, mask.expand(5, -1, -1, -1)), torch.rand(4, 4, 2), mask)
    torch.testing.assert_close(made["atlas_z_brighter"], -made["atlas_z_darker"])


def test_an_atlas_of_one_level_serves_several():
    images = torch.randint(0, 255, (5, 4, 4, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    model = fitted(images, torch.ones_like(images, dtype=torch.bool))
    image = torch.rand(4, 4, 3)
    whole = maps(model, image, torch.ones(4, 4, 3, dtype=torch.bool))["atlas_z"]
    for level in range(3):
        part = maps(model, image[..., level : level + 1], torch.ones(4, 4, 1, dtype=torch.bool))["atlas_z"]
        torch.testing.assert_close(whole[..., level : level + 1], part)


def test_weights_that_are_no_atlas_are_refused():
    with pytest.raises(RuntimeError):
        atlas_zscore.build(CONFIG).load_state_dict({"mean": torch.zeros(2, 2, 2, dtype=torch.int16)})
    with pytest.raises(RuntimeError):
        atlas_zscore.build(CONFIG).load_state_dict(
            {"mean": torch.zeros(4, dtype=torch.int16), "deviation": torch.zeros(4, dtype=torch.int16)}
        )
