"""Pyramid noise: Gaussian noise drawn at several resolutions, enlarged and added up.

It puts power at low spatial frequencies as simplex noise does, without a lattice. Several levels from full
resolution on as in ANDi (Frotscher et al., 2023); one coarse level alone is the noise of the denoising
autoencoder of Kascenas et al. (MIDL 2022): 16 x 16 for an image of 128 x 128 is ``first_level=3, levels=1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monailabel_app.errors import InvalidSettings


def pyramid_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    levels: int = 6,
    first_level: int = 0,
    discount: float = 0.8,
) -> torch.Tensor:
    """Noise of shape (n, c, x, y), every value N(0, 1), independent between items and channels.

    Level k has the resolution of the image divided by ``2**k``, amplitude ``discount**(k - first_level)``,
    and is enlarged bilinearly. Interpolation lowers the variance between grid points; the sum is divided by
    its exact standard deviation at each pixel, which depends on the configuration only. Levels coarser than
    one pixel are left out, but the first is kept.

    Drawn where the generator lives, as in gaussian_noise. Raises InvalidSettings for a shape that is not 4-D
    or for parameters out of range.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise InvalidSettings(f"Expected a noise shape (n, c, x, y) of positive sizes, got {tuple(shape)}")
    if levels < 1 or first_level < 0 or not 0 < discount <= 1:
        raise InvalidSettings(
            "Pyramid noise needs levels >= 1, first_level >= 0 and 0 < discount <= 1, "
            f"got levels={levels}, first_level={first_level}, discount={discount}"
        )
    n, c, size_x, size_y = (int(v) for v in shape)
    home = generator.device
    total = torch.zeros((n, c, size_x, size_y), device=home)
    variance = torch.zeros((size_x, size_y), device=home)
    for level in range(first_level, first_level + levels):
        coarse_x, coarse_y = (max(1, -(-size // 2**level)) for size in (size_x, size_y))
        enlarge_x, enlarge_y = _enlarging(coarse_x, size_x, home), _enlarging(coarse_y, size_y, home)
        amplitude = discount ** (level - first_level)
        drawn = torch.randn((n, c, coarse_x, coarse_y), generator=generator, device=home)
        total += amplitude * (enlarge_x @ drawn @ enlarge_y.T)
        variance += amplitude**2 * torch.outer(enlarge_x.square().sum(1), enlarge_y.square().sum(1))
        if coarse_x == coarse_y == 1:
            break
    return (total / variance.sqrt()).to(device=device, dtype=dtype)


def _enlarging(coarse: int, size: int, device: torch.device) -> torch.Tensor:
    """(size, coarse) matrix of linear interpolation along one axis."""
    basis = torch.eye(coarse, device=device)[None]
    return F.interpolate(basis, size=size, mode="linear", align_corners=False)[0].T
