"""White Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gaussian_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Independent N(0, 1) values of the given shape.

    The values are drawn where the generator lives and then moved, so a CPU generator gives the same noise on
    every device.
    """
    drawn = torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(device=device, dtype=dtype)
