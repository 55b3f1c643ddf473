"""The training cache: bit-exact round trip, 8-bit accuracy, refusal of what is not one."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.training.cache import TrainingCache, to_cache


def prepared(count=2, shape=(5, 6, 7)):
    generator = np.random.default_rng(0)
    images = [generator.uniform(0, 1, (1, *shape)).astype(np.float32) for _ in range(count)]
    return images, [image[0] > 0.4 for image in images]


def test_images_keep_eight_bits_and_masks_every_voxel(tmp_path):
    images, masks = prepared()
    made = to_cache(images, masks, ["a", "b"], "flair")
    assert np.abs(made.images.numpy() / 255.0 - np.stack(images)[:, 0]).max() <= 0.5 / 255 + 1e-6
    made.save(tmp_path / "sub" / "cache.safetensors")
    back = TrainingCache.load(tmp_path / "sub" / "cache.safetensors")
    assert torch.equal(back.images, made.images)
    np.testing.assert_array_equal(back.brain_masks.numpy(), np.stack(masks))
    assert (back.ids, back.modality, len(back)) == (("a", "b"), "flair", 2)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["cache.safetensors"]


def test_a_missing_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(TrainingFailed, match=r"main\.py prepare"):
        TrainingCache.load(tmp_path / "none.safetensors")


def test_another_version_is_refused(tmp_path):
    save_file({"images": torch.zeros(1)}, str(tmp_path / "old.safetensors"), {"version": "0"})
    with pytest.raises(TrainingFailed, match="version 1, got 0"):
        TrainingCache.load(tmp_path / "old.safetensors")


def test_a_damaged_cache_is_refused_by_name(tmp_path):
    path = tmp_path / "cache.safetensors"
    to_cache(*prepared(), ["a", "b"], "t1").save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrainingFailed, match="damaged"):
        TrainingCache.load(path)
