"""The first layers of a residual network as a source of local features: stem, layer1 and layer2.

He et al., Deep residual learning for image recognition (CVPR 2016). Modules and parameters carry torchvision's names,
so that a ResNet-18 state dict of torchvision fits the trunk of that size. Nothing in it behaves differently in
training and evaluation mode: group norms have no running statistics, and the norms of a network that was trained with
batch norm keep the statistics that came with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

_EPS = 1e-5


@dataclass(frozen=True)
class TrunkConfig:
    """width: channels of stem and layer1; layer2 has twice as many. kernel, pool: of the stem, which halves the size.

    pool halves it once more. norm: ``group``, or ``fixed`` for batch norms with frozen statistics. in_channels: grey
    slices are repeated. enlarge: factor by which slices are enlarged before the stem.
    """

    width: int = 32
    kernel: int = 5
    pool: bool = False
    norm: Literal["group", "fixed"] = "group"
    in_channels: int = 1
    enlarge: int = 1

    @property
    def channels(self) -> int:
        """Channels of stem, layer1 and layer2 side by side."""
        return 4 * self.width


# Slices are enlarged since the stem was made for 224 x 224 pictures: 2 mm slices would end at 1/4 of their size.
RESNET18 = TrunkConfig(width=64, kernel=7, pool=True, norm="fixed", in_channels=3, enlarge=2)


class FixedNorm(nn.Module):
    """Batch norm with the statistics it was given, in every mode; names as in ``nn.BatchNorm2d``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> the same shape."""
        scale = self.weight / torch.sqrt(self.running_var + _EPS)
        offset = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x) + offset[:, None, None].to(x)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, before: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = _norm(norm, width)
        self.downsample = None
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), _norm(norm, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, before, h, w) -> (n, width, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetTrunk(nn.Module):
    """(n, 1, X, Y) slices in [-1, 1] -> (n, 4 * width, h, w): stem, layer1 and layer2 at the stem's resolution."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(config.in_channels, width, config.kernel, 2, padding=config.kernel // 2, bias=False)
        self.bn1 = _norm(config.norm, width)
        self.layer1 = nn.Sequential(*(BasicBlock(width, width, 1, config.norm) for _ in range(2)))
        self.layer2 = nn.Sequential(
            BasicBlock(width, 2 * width, 2, config.norm), BasicBlock(2 * width, 2 * width, 1, config.norm)
        )

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Features of all three depths, the deepest one enlarged (Meissen et al. 2022, section 2)."""
        x = slices
        if self.config.enlarge > 1:
            x = functional.interpolate(x, scale_factor=self.config.enlarge, mode="bilinear", align_corners=False)
        if self.config.in_channels > 1:
            x = x.expand(-1, self.config.in_channels, -1, -1)
        stem = functional.relu(self.bn1(self.conv1(x)))
        if self.config.pool:
            stem = functional.max_pool2d(stem, 3, 2, padding=1)
        first = self.layer1(stem)
        second = self.layer2(first)
        second = functional.interpolate(second, stem.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([stem, first, second], dim=1)


def frozen(module: nn.Module) -> nn.Module:
    """The module with every parameter turned into a buffer of the same name.

    What is no parameter is seen by no optimizer, weight decay or average: the module stays as it is, bit by bit.
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                delattr(part, name)
                part.register_buffer(name, parameter.detach().clone())
    return module


def _norm(kind: str, channels: int) -> nn.Module:
    return FixedNorm(channels) if kind == "fixed" else nn.GroupNorm(math.gcd(8, channels), channels)
