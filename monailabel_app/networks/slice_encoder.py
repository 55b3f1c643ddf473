"""A residual network that sums a slice up in one feature vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class EncoderConfig:
    """channels, blocks: width and number of residual blocks of each level. features: length of the vector.

    block_size: side of the pixel blocks that become channels. norm_groups: of the group normalisation.
    """

    channels: tuple[int, ...] = (24, 48, 80)
    blocks: tuple[int, ...] = (1, 1, 1)
    features: int = 64
    norm_groups: int = 8
    block_size: int = 2

    @property
    def size_multiple(self) -> int:
        """Sides of a slice must be multiples of this."""
        return self.block_size


class SliceEncoder(nn.Module):
    """(n, 1, X, Y) slices -> (n, features). A ResNet (He et al., 2016) with group instead of batch normalisation.

    Running statistics of a batch would carry one patient's brain into the next one's result.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        width = config.channels[0]
        layers: list[nn.Module] = [nn.Conv2d(config.block_size**2, width, 3, padding=1)]
        for channels, count in zip(config.channels, config.blocks, strict=True):
            for index in range(count):
                layers.append(_ResidualBlock(width, channels, 2 if index == 0 else 1, config.norm_groups))
                width = channels
        self.body = nn.Sequential(*layers, nn.GroupNorm(config.norm_groups, width), nn.SiLU())
        self.features = nn.Linear(width, config.features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: any range; the same for training and use."""
        blocks = functional.pixel_unshuffle(images, self.block_size)
        return self.features(self.body(blocks).mean(dim=(2, 3)))


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after normalisation and SiLU, beside a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.before = nn.Sequential(
            nn.GroupNorm(groups, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        same = inputs == outputs and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beside(x) + self.before(x)
