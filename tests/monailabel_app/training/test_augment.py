"""Augmentation: repeats from its seed, keeps the range and the background, and can be switched off."""

import torch

from monailabel_app.training.augment import AugmentConfig, augment

OFF = AugmentConfig(gamma=0, gain=0, bias=0, flip=0, shift=0)


def slices(count=6) -> torch.Tensor:
    out = torch.zeros(count, 1, 16, 20)
    out[:, :, 4:11, 5:15] = torch.rand(count, 1, 7, 10, generator=torch.Generator().manual_seed(3))
    return out


def augmented(config, seed=0):
    return augment(slices(), config, torch.Generator().manual_seed(seed))


def test_the_same_seed_gives_the_same_slices():
    assert torch.equal(augmented(AugmentConfig()), augmented(AugmentConfig()))
    assert not torch.equal(augmented(AugmentConfig()), augmented(AugmentConfig(), seed=1))


def test_with_every_amplitude_zero_nothing_changes():
    torch.testing.assert_close(augmented(OFF), slices())


def test_values_stay_intensities_and_the_background_stays_zero():
    strong = AugmentConfig(gamma=1, gain=1, bias=1, flip=0, shift=0)
    out = augmented(strong)
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out[slices() == 0] == 0).all()
    assert not torch.allclose(out, slices())


def test_a_flip_swaps_left_and_right_only():
    always = AugmentConfig(gamma=0, gain=0, bias=0, flip=1, shift=0)
    torch.testing.assert_close(augmented(always), slices().flip(2))


def test_some_slices_are_flipped_and_some_are_not():
    half = AugmentConfig(gamma=0, gain=0, bias=0, flip=0.5, shift=0)
    out, before = augmented(half), slices()
    same = [bool(torch.allclose(a, b)) for a, b in zip(out, before, strict=True)]
    assert 0 < sum(same) < len(same)


def test_a_shift_moves_but_keeps_every_value():
    moved = augmented(AugmentConfig(gamma=0, gain=0, bias=0, flip=0, shift=2), seed=4)
    assert torch.equal(moved.flatten().sort().values, slices().flatten().sort().values)


def test_each_slice_has_its_own_gain():
    out = augmented(AugmentConfig(gamma=0, gain=0.3, bias=0, flip=0, shift=0))
    ratio = (out.sum((1, 2, 3)) / slices().sum((1, 2, 3))).tolist()
    assert len({round(r, 4) for r in ratio}) == len(ratio)
