"""Smooth random deformations of healthy slices: other people's anatomy from few people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

_NODES = (6, 8)  # of the lattice that smooth displacements are drawn on


@dataclass(frozen=True)
class DeformationConfig:
    """scale: log deviation of each axis. rotation: degrees, deviation. displacement: pixels, deviation at the nodes.

    share: slices that are deformed; interpolation blurs, so that some should stay as sharp as scans are. All 0 leaves
    slices as they are.
    """

    scale: float = 0.05
    rotation: float = 3.0
    displacement: float = 1.5
    share: float = 0.7


def deform_slices(slices: torch.Tensor, config: DeformationConfig, generator: torch.Generator) -> torch.Tensor:
    """(n, 1, X, Y) -> the same with a random smooth deformation of each slice, drawn on the CPU."""
    if not (config.share and (config.scale or config.rotation or config.displacement)):
        return slices
    n, _, size_x, size_y = slices.shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    scale = torch.exp(config.scale * normal(n, 2)).to(slices)
    angle = (math.radians(config.rotation) * normal(n)).to(slices)
    nodes = (config.displacement * normal(n, 2, *_NODES)).to(slices)
    # In pixels from the middle, so that a rotation is one whatever the shape of the slice.
    x = (torch.arange(size_x).to(slices) - (size_x - 1) / 2)[None, :, None]
    y = (torch.arange(size_y).to(slices) - (size_y - 1) / 2)[None, None, :]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along_x = (cos * x + sin * y) * scale[:, 0, None, None]
    along_y = (cos * y - sin * x) * scale[:, 1, None, None]
    moved = functional.interpolate(nodes, (size_x, size_y), mode="bicubic", align_corners=True)
    along_x, along_y = along_x + moved[:, 0], along_y + moved[:, 1]
    places = torch.stack((along_y * (2 / (size_y - 1)), along_x * (2 / (size_x - 1))), dim=-1)
    moved = functional.grid_sample(slices, places, padding_mode="zeros", align_corners=True)
    chosen = (torch.rand(n, generator=generator) < config.share).to(slices.device)[:, None, None, None]
    return torch.where(chosen, moved, slices)
