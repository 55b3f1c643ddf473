from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.slices import SlicePool, VolumePool
from tests.monailabel_app.synthetic import random_cache

CPU = torch.device("cpu")


def single_slices():
    cache = random_cache(2)
    return replace(cache, images=cache.images[..., 16:17], brain_masks=cache.brain_masks[..., 16:17])


def test_single_slices_give_axial_samples_only():
    cache = single_slices()
    assert SlicePool(cache, CPU).draw(3, torch.Generator().manual_seed(0))[0].shape == (3, 1, 32, 40)
    # Forty pixels of one row would pass for a coronal slice of brain.
    with pytest.raises(InvalidSettings, match="single axial slices"):
        SlicePool(cache, CPU, ("axial", "coronal"))


def test_single_slices_are_no_whole_brains():
    with pytest.raises(InvalidSettings, match="single slices"):
        VolumePool(single_slices(), CPU)
