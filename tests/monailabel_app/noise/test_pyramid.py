"""Pyramid noise: unit variance at every pixel, coarse structure, repeatability."""

import pytest
import torch
import torch.nn.functional as F

from monailabel_app.errors import InvalidSettings
from monailabel_app.noise.pyramid import pyramid_noise


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"first_level": 2, "levels": 1}, {"levels": 20, "discount": 1.0}])
def test_every_pixel_has_mean_zero_and_unit_variance_over_samples(options):
    noise = pyramid_noise((4000, 1, 12, 15), seeded(0), **options)
    # 4000 samples: the standard error of a pixel's standard deviation is about 0.011.
    assert noise.std(0).sub(1).abs().max() < 0.06
    assert noise.mean(0).abs().max() < 0.08


def test_one_coarse_level_is_enlarged_gaussian_noise_up_to_its_scale():
    noise = pyramid_noise((2, 1, 16, 16), seeded(3), first_level=2, levels=1)
    drawn = torch.randn((2, 1, 4, 4), generator=seeded(3))
    enlarged = F.interpolate(drawn, size=(16, 16), mode="bilinear", align_corners=False)
    scale = noise / enlarged
    torch.testing.assert_close(scale[0], scale[1], rtol=1e-3, atol=1e-3)
    assert scale.min() >= 1 - 1e-4  # interpolation never raises the variance


def test_neighbouring_pixels_agree_more_than_in_white_noise():
    noise = pyramid_noise((400, 1, 32, 32), seeded(0))
    assert (noise[..., 1:] * noise[..., :-1]).mean() > 0.4


def test_items_and_channels_are_independent():
    noise = pyramid_noise((400, 2, 16, 16), seeded(0))
    assert (noise[:, 0] * noise[:, 1]).mean().abs() < 0.05
    assert (noise[1:] * noise[:-1]).mean().abs() < 0.05


def test_the_generator_alone_decides_the_values():
    assert torch.equal(pyramid_noise((1, 1, 8, 8), seeded(7)), pyramid_noise((1, 1, 8, 8), seeded(7)))
    assert not torch.equal(pyramid_noise((1, 1, 8, 8), seeded(7)), pyramid_noise((1, 1, 8, 8), seeded(8)))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((1, 8, 8), {}), ((1, 1, 8, 8), {"levels": 0}), ((1, 1, 8, 8), {"discount": 1.5})],
)
def test_impossible_parameters_are_named(shape, options):
    with pytest.raises(InvalidSettings, match=r"Expected|needs"):
        pyramid_noise(shape, seeded(0), **options)
