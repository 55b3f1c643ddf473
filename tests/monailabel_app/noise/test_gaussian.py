"""White noise: unit variance, repeatable, independent of the device asked for."""

import torch

from monailabel_app.noise.gaussian import gaussian_noise


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mean_is_zero_and_variance_one():
    noise = gaussian_noise((4, 1, 64, 64), seeded(0))
    assert abs(noise.mean().item()) < 0.03
    assert abs(noise.var().item() - 1) < 0.05


def test_the_generator_alone_decides_the_values():
    first = gaussian_noise((2, 1, 8, 8), seeded(7))
    torch.manual_seed(123)
    assert torch.equal(first, gaussian_noise((2, 1, 8, 8), seeded(7)))
    assert not torch.equal(first, gaussian_noise((2, 1, 8, 8), seeded(8)))


def test_the_dtype_asked_for_rounds_the_same_draws():
    low = gaussian_noise((1, 1, 8, 8), seeded(1), dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, gaussian_noise((1, 1, 8, 8), seeded(1)).to(torch.bfloat16))
