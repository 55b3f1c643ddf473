"""Cheap augmentation of healthy samples: what differs between scanners, never what looks like a lesion."""

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


def augment(
    samples: torch.Tensor, config: AugmentConfig, generator: torch.Generator, *, flips: bool = True
) -> torch.Tensor:
    """Slices (n, 1, A, B) or brains (n, 1, X, Y, Z) in [0, 1] -> the same with random gamma, gain, smooth bias,
    left-right flip (along the first spatial axis, unless ``flips`` is off) and shift.

    Background (exact zero) stays zero. Drawn on the CPU from ``generator``, so that a run repeats on any device.
    """
    n, size = len(samples), samples.shape[2:]
    ones = (1,) * (samples.ndim - 1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gamma = torch.exp(config.gamma * normal(n, *ones)).to(samples)
    gain = torch.exp(config.gain * normal(n, *ones)).to(samples)
    coarse = config.bias * normal(n, 1, *(3, 4, 3)[: len(size)])
    mode = "bicubic" if len(size) == 2 else "trilinear"
    bias = torch.exp(functional.interpolate(coarse, tuple(size), mode=mode, align_corners=True)).to(samples)
    out = (samples.clamp(min=0) ** gamma * gain * bias).clamp(0, 1)
    flipped = (torch.rand(n, generator=generator) < (config.flip if flips else 0.0)).to(samples.device)
    out = torch.where(flipped.reshape(n, *ones), out.flip(2), out)
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (len(size),), generator=generator).tolist()
        out = torch.roll(out, moves, dims=tuple(range(2, samples.ndim)))
    return out
