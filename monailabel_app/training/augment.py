"""Cheap augmentation of healthy slices: what differs between scanners, never what looks like a lesion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class AugmentConfig:
    """Log-gamma and log-gain standard deviations, bias field amplitude (log), flip probability, shift in pixels."""

    gamma: float = 0.12
    gain: float = 0.06
    bias: float = 0.12
    flip: float = 0.5
    shift: int = 2


def augment_slices(slices: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """(n, 1, X, Y) in [0, 1] -> the same with random gamma, gain, smooth bias, left-right flip and shift.

    Background (exact zero) stays zero. Drawn on the CPU from ``generator``, so that a run repeats on any device.
    """
    n, _, size_x, size_y = slices.shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gamma = torch.exp(config.gamma * normal(n, 1, 1, 1)).to(slices)
    gain = torch.exp(config.gain * normal(n, 1, 1, 1)).to(slices)
    coarse = config.bias * normal(n, 1, 3, 4)
    bias = torch.exp(functional.interpolate(coarse, (size_x, size_y), mode="bicubic", align_corners=True)).to(slices)
    out = (slices.clamp(min=0) ** gamma * gain * bias).clamp(0, 1)
    flipped = (torch.rand(n, generator=generator) < config.flip).to(slices.device)
    out = torch.where(flipped[:, None, None, None], out.flip(2), out)
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (2,), generator=generator).tolist()
        out = torch.roll(out, moves, dims=(2, 3))
    return out
