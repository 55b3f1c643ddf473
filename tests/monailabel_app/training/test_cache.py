"""The training cache: bit-exact round trip, 8-bit accuracy, refusal of what is not one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.training.cache import TrainingCache, to_cache
from tests.monailabel_app.synthetic import AFFINE


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


def test_patients_are_kept_and_are_the_ids_where_nobody_says_otherwise(tmp_path):
    images, masks = prepared(3)
    assert to_cache(images, masks, ["a", "b", "c"], "t1").patients == ("a", "b", "c")
    made = replace(to_cache(images, masks, ["a", "b", "c"], "t1", ["p", "p", "q"]), digests=("1", "2", "3"))
    made.save(tmp_path / "cache.safetensors")
    back = TrainingCache.load(tmp_path / "cache.safetensors")
    assert (back.patients, back.digests) == (("p", "p", "q"), ("1", "2", "3"))
    with pytest.raises(TrainingFailed, match="patients for each of 3"):
        to_cache(images, masks, ["a", "b", "c"], "t1", ["p", "q"])


def test_a_file_made_before_patients_were_recorded_still_loads(tmp_path):
    images, masks = prepared()
    made = to_cache(images, masks, ["a", "b"], "t1")
    packed = torch.from_numpy(np.packbits(made.brain_masks.numpy().reshape(2, -1), axis=1))
    header = {"version": "1", "ids": '["a", "b"]', "modality": "t1"}
    save_file({"images": made.images, "brain_masks": packed}, str(tmp_path / "old.safetensors"), header)
    back = TrainingCache.load(tmp_path / "old.safetensors")
    assert (back.ids, back.patients, back.digests) == (("a", "b"), ("a", "b"), ())
    assert torch.equal(back.images, made.images)
    assert torch.equal(back.brain_masks, made.brain_masks)


def test_a_selection_keeps_what_belongs_together():
    images, masks = prepared(3)
    made = replace(to_cache(images, masks, ["a", "b", "c"], "t1", ["p", "q", "r"]), digests=("1", "2", "3"))
    chosen = made.select([2, 0])
    assert (chosen.ids, chosen.patients, chosen.digests) == (("c", "a"), ("r", "p"), ("3", "1"))
    assert torch.equal(chosen.images[0], made.images[2])
    assert torch.equal(chosen.brain_masks[1], made.brain_masks[0])
    assert len(made.select([])) == 0


def test_a_prepared_volume_comes_back_on_the_model_grid_itself():
    images, masks = prepared()
    volume = to_cache(images, masks, ["a", "b"], "t1").prepared(1, AFFINE)
    assert np.abs(volume.image - images[1]).max() <= 0.5 / 255 + 1e-6
    assert (volume.image.dtype, volume.image.shape) == (np.float32, (1, 5, 6, 7))
    np.testing.assert_array_equal(volume.brain_mask, masks[1])
    values = np.where(masks[1], images[1][0], 0)
    np.testing.assert_allclose(to_native(values, volume), values, atol=1e-5)


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
