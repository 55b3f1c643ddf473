"""A lean U-Net that restores slices: about three times as fast on a CPU as the denoiser of the same width.

Pixel blocks become channels, one residual block per level and direction, skips are added rather than concatenated. The
mirror image comes in as a second channel: in template space it puts the other hemisphere beside each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

_TIME_FEATURES = 32


@dataclass(frozen=True)
class RestorationConfig:
    """block_size: side of the pixel blocks that become channels. blocks: residual blocks per level and direction.

    attention: self-attention at the coarsest level. mirror: the left-right mirrored slice as a second channel (only
    right for slices whose first axis is left-right). outputs: channels per pixel.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    norm_groups: int = 8
    block_size: int = 2
    attention: bool = False
    mirror: bool = False
    outputs: int = 1

    @property
    def size_multiple(self) -> int:
        """Sides of a slice must be multiples of this; coarser levels may be odd."""
        return self.block_size


class RestorationUnet(nn.Module):
    """(n, 1, X, Y) slices and (n,) times in [0, 1] -> (n, outputs, X, Y); all zero before training."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        self.config = config
        channels, groups = config.channels, config.norm_groups
        pixels = config.block_size**2
        features = 4 * _TIME_FEATURES
        self.time = nn.Sequential(nn.Linear(2 * _TIME_FEATURES, features), nn.SiLU())
        self.first = nn.Conv2d(pixels * (2 if config.mirror else 1), channels[0], 3, padding=1)
        before = (channels[0], *channels[:-1])
        self.down = nn.ModuleList(
            _Stage(a, b, config.blocks, features, groups) for a, b in zip(before, channels, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = _Stage(channels[-1], channels[-1], 1, features, groups)
        self.attention = _Attention(channels[-1], groups) if config.attention else nn.Identity()
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(channels))
        self.up = nn.ModuleList(_Stage(c, c, config.blocks, features, groups) for c in channels[:-1])
        self.norm = nn.GroupNorm(groups, channels[0])
        self.last = nn.Conv2d(channels[0], pixels * config.outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, slices: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Both arguments on the module's device."""
        inputs = torch.cat((slices, slices.flip(2)), dim=1) if self.config.mirror else slices
        when = self.time(_waves(times))
        hidden = self.first(functional.pixel_unshuffle(inputs, self.config.block_size))
        skips = []
        for number, stage in enumerate(self.down):
            hidden = stage(hidden, when)
            if number < len(self.shrink):
                skips.append(hidden)
                hidden = self.shrink[number](hidden)
        hidden = self.attention(self.middle(hidden, when))
        for number in reversed(range(len(self.up))):
            skip = skips[number]
            grown = functional.interpolate(self.grow[number](hidden), size=skip.shape[2:], mode="nearest")
            hidden = self.up[number](grown + skip, when)
        return functional.pixel_shuffle(self.last(functional.silu(self.norm(hidden))), self.config.block_size)


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, features: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(inputs if number == 0 else outputs, outputs, features, groups) for number in range(blocks)
        )

    def forward(self, hidden: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden, when)
        return hidden


class _Block(nn.Module):
    """Residual block whose second normalisation is scaled and shifted by the time."""

    def __init__(self, inputs: int, outputs: int, features: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(features, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        scale, shift = self.time(when)[:, :, None, None].chunk(2, dim=1)
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner) * (1 + scale) + shift))
        return self.skip(hidden) + inner


class _Attention(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.inner = nn.Conv2d(channels, 3 * channels, 1)
        self.outer = nn.Conv2d(channels, channels, 1)
        self.heads = max(1, channels // 32)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        n, channels, size_x, size_y = hidden.shape
        parts = self.inner(self.norm(hidden)).reshape(n, 3, self.heads, -1, size_x * size_y).transpose(3, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(dim=1))
        return hidden + self.outer(mixed.transpose(2, 3).reshape(n, channels, size_x, size_y))


def _waves(times: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of times in [0, 1], (n, 2 * features)."""
    exponents = torch.arange(_TIME_FEATURES, device=times.device) / (_TIME_FEATURES - 1)
    angles = times.float()[:, None] * (math.pi * 64**exponents)[None]
    return torch.cat((angles.sin(), angles.cos()), dim=1)
