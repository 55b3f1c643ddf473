"""Simplex noise: the published function, unit variance at every pixel, one independent field per item."""

import numpy as np
import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.noise.simplex import (
    _ORIGIN_STEP,
    fractal_fields,
    permutation_from_seed,
    simplex2,
    simplex_noise,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 3, -5, 2**40 + 1])
def test_equals_the_opensimplex_package_at_random_points(seed):
    opensimplex = pytest.importorskip("opensimplex")
    reference = opensimplex.OpenSimplex(seed)
    permutation = permutation_from_seed(seed)
    x, y = np.random.default_rng(0).uniform(-300, 300, (2, 500))
    expected = [reference.noise2(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    values = simplex2(torch.from_numpy(x), torch.from_numpy(y), permutation)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-9)


def test_a_fractal_field_is_the_weighted_sum_of_octaves_of_halving_feature_size():
    permutations = torch.stack([permutation_from_seed(1), permutation_from_seed(2)])
    fields = fractal_fields(permutations, (9, 14), 3, 0.5, 12.0, unit_variance=False)
    x, y = torch.meshgrid(torch.arange(9.0).double(), torch.arange(14.0).double(), indexing="ij")
    for field, permutation in zip(fields, permutations, strict=True):
        expected = sum(
            0.5**k
            * simplex2(
                x / (12 / 2**k) + (k + 1) * _ORIGIN_STEP[0],
                y / (12 / 2**k) + (k + 1) * _ORIGIN_STEP[1],
                permutation,
            )
            for k in range(3)
        )
        torch.testing.assert_close(field.double(), expected, atol=1e-5, rtol=0)


def test_every_pixel_has_mean_zero_and_unit_variance_over_samples():
    noise = simplex_noise((4000, 1, 20, 24), seeded(0))
    # 4000 samples: the standard error of a pixel's standard deviation is about 0.011.
    assert noise.std(0).sub(1).abs().max() < 0.07
    assert noise.mean(0).abs().max() < 0.08


def test_without_scaling_the_variance_depends_on_the_pixel():
    spread = simplex_noise((1000, 1, 20, 24), seeded(0), unit_variance=False).std(0)
    assert spread.min() > 0.2
    assert spread.max() / spread.min() > 1.2


def test_most_power_is_at_low_spatial_frequencies():
    noise = simplex_noise((64, 1, 64, 64), seeded(0))
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    low = power[:4, :4].sum() + power[:4, -3:].sum() + power[-3:, :4].sum() + power[-3:, -3:].sum()
    assert low / power.sum() > 0.5  # white noise: 49 / 4096 = 0.012


def test_the_generator_alone_decides_the_field():
    first = simplex_noise((2, 1, 16, 16), seeded(7))
    torch.manual_seed(123)
    assert torch.equal(first, simplex_noise((2, 1, 16, 16), seeded(7)))
    assert not torch.equal(first, simplex_noise((2, 1, 16, 16), seeded(8)))


def test_items_and_channels_are_independent_fields():
    noise = simplex_noise((200, 2, 32, 32), seeded(0))
    between_channels = (noise[:, 0] * noise[:, 1]).mean(0)
    between_items = (noise[:-1, 0] * noise[1:, 0]).mean(0)
    assert between_channels.mean().abs() < 0.05
    assert between_items.mean().abs() < 0.05


def test_shared_gives_one_field_to_the_whole_batch():
    noise = simplex_noise((3, 2, 16, 16), seeded(0), shared=True)
    assert noise.shape == (3, 2, 16, 16)
    assert torch.equal(noise, noise[:1, :1].expand_as(noise))
    noise[0] = 0  # the items do not share memory
    assert noise[1].abs().sum() > 0


def test_consecutive_calls_differ():
    generator = seeded(0)
    first, second = (simplex_noise((1, 1, 16, 16), generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_permutation_is_one_of_0_to_255():
    assert permutation_from_seed(42).sort().values.tolist() == list(range(256))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 16, 16), {}),
        ((0, 1, 16, 16), {}),
        ((1, 1, 16, 16), {"octaves": 0}),
        ((1, 1, 16, 16), {"persistence": 0.0}),
        ((1, 1, 16, 16), {"frequency": -1.0}),
    ],
)
def test_impossible_parameters_are_named(shape, options):
    with pytest.raises(InvalidSettings, match=r"xpected|needs"):
        simplex_noise(shape, seeded(0), **options)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_field_on_a_gpu():
    on_gpu = simplex_noise((4, 1, 80, 96), seeded(3), device="cuda").cpu()
    torch.testing.assert_close(on_gpu, simplex_noise((4, 1, 80, 96), seeded(3)), atol=1e-5, rtol=0)
