"""Deviation of every voxel from healthy brains at the same place, without any network.

The comparator that a reconstruction has to beat to be worth its cost: mean and deviation of the normalised intensity of
healthy brains in template space, and a new brain's z-score against them. Computed from the healthy scans in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .output import MethodOutput, Progress

ILLUMINATION_MM = 0.0  # the mean brain is shown as it is
_UNITS = 32767  # mean and deviation lie in [0, 1] and are kept as 16-bit fractions of it: finer than half precision
_DEVIATION_FLOOR = 0.01


@dataclass(frozen=True)
class Config:
    """floor: the least deviation, in units of the normalised intensity."""

    floor: float = _DEVIATION_FLOOR


PRESETS = {"compact": Config(), "large": Config(), "tiny": Config()}


class Atlas(nn.Module):
    """mean, deviation: (X, Y, Z) int16 buffers in units of 1 / 32767; they take the size of what is loaded.

    Z is 1 for a model of single slices, whose atlas then holds for each of the levels it analyses.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros((1, 1, 1), dtype=torch.int16))

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            found = state_dict.get(prefix + name)
            if found is not None and found.ndim == 3 and found.dtype == buffer.dtype:
                setattr(self, name, torch.zeros_like(found, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(config: Config) -> nn.Module:
    """An empty atlas."""
    return Atlas()


def healthy_moments(images: torch.Tensor, brain_masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of healthy brains at every voxel, (X, Y, Z) float64 each, one brain in memory at a time.

    images: (n, X, Y, Z) uint8, intensity x 255. brain_masks: (n, X, Y, Z) bool; a brain counts where it covers a voxel.
    The deviation has a floor of 0.01; both are 0 and the floor where no brain is.
    """
    count = torch.zeros(images.shape[1:], dtype=torch.float64)
    total, square = torch.zeros_like(count), torch.zeros_like(count)
    for image, mask in zip(images, brain_masks, strict=True):
        values = torch.where(mask, image.double() / 255.0, 0.0)
        count += mask
        total += values
        square += values**2
    count.clamp_(min=1)
    mean = total / count
    return mean, (square / count - mean**2).clamp(min=_DEVIATION_FLOOR**2).sqrt()


def fit_cache(config: Config, images: torch.Tensor, brain_masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The atlas of healthy scans as a state dict: images (n, X, Y, Z) uint8, brain_masks (n, X, Y, Z) bool."""
    mean, deviation = healthy_moments(images, brain_masks)
    pair = {"mean": mean, "deviation": deviation.clamp(min=config.floor)}
    return {name: (values * _UNITS).round().clamp(0, _UNITS).to(torch.int16) for name, values in pair.items()}


@torch.inference_mode()
def analyse(
    model: nn.Module,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """Signed z-scores: ``atlas_z`` counts both signs, ``atlas_z_brighter`` and ``atlas_z_darker`` one each.

    image, brain_mask: (X, Y, Z). The reconstruction is the healthy mean.
    """
    mean, deviation = model.mean.float() / _UNITS, model.deviation.float() / _UNITS
    z = torch.where(brain_mask, (image - mean) / deviation.clamp(min=config.floor), 0.0)
    if progress is not None:
        progress(1.0)
    return MethodOutput(
        reconstruction=torch.where(brain_mask, mean, 0.0),
        maps={"atlas_z": z, "atlas_z_brighter": z, "atlas_z_darker": -z},
    )
