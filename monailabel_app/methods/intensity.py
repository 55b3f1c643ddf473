"""Intensity as the anomaly map: what is bright (FLAIR) or out of the ordinary (T1) within its own scan.

Meissen et al., Challenging current semi-supervised anomaly segmentation methods for brain MRI (BrainLes 2021): the
histogram-equalised FLAIR image, thresholded, outdid the networks of its time. The z-score within the scan, smoothed, is
its parametric relative. Nothing is learnt but what calibration learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .output import MethodOutput, Progress


@dataclass(frozen=True)
class Config:
    """bins: of the histogram over the brain's intensities."""

    bins: int = 256


PRESETS = {"compact": Config(), "large": Config(), "tiny": Config()}


def build(config: Config) -> nn.Module:
    """A module without parameters."""
    return nn.Module()


def fit_cache(config: Config, images: torch.Tensor, brain_masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Nothing: each scan is compared with itself."""
    return {}


def equalize(image: torch.Tensor, brain_mask: torch.Tensor, bins: int = 256) -> torch.Tensor:
    """Histogram equalisation inside the brain: the share of the brain that is darker, (X, Y, Z) in [0, 1].

    The cumulative histogram over ``bins`` equal bins between the brain's extremes, interpolated between bin centres.
    """
    inside = image[brain_mask].float()
    result = torch.zeros_like(image, dtype=torch.float32)
    if inside.numel() == 0:
        return result
    low, high = inside.min(), inside.max()
    if not high > low:
        return result
    place = (inside - low) / (high - low) * bins
    counts = torch.bincount(place.long().clamp(max=bins - 1), minlength=bins)
    cumulative = counts.cumsum(0).float() / inside.numel()
    at = (place - 0.5).clamp(0, bins - 1)
    below = at.long().clamp(max=bins - 2) if bins > 1 else at.long()
    above = (below + 1).clamp(max=bins - 1)
    share = at - below
    result[brain_mask] = cumulative[below] * (1 - share) + cumulative[above] * share
    return result


def z_score(image: torch.Tensor, brain_mask: torch.Tensor) -> torch.Tensor:
    """Signed z-score of each brain voxel within its own scan: (X, Y, Z) float32, 0 outside the brain."""
    inside = image[brain_mask].float()
    if inside.numel() == 0:
        return torch.zeros_like(image, dtype=torch.float32)
    spread = inside.std(correction=0).clamp(min=1e-6)
    return torch.where(brain_mask, (image.float() - inside.mean()) / spread, 0.0)


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
    """``intensity_z`` counts both signs, ``intensity_z_brighter`` one; ``equalized`` is the equalised image itself.

    image, brain_mask: (X, Y, Z). There is no reconstruction.
    """
    z, equalized = z_score(image, brain_mask), equalize(image, brain_mask, config.bins)
    if progress is not None:
        progress(1.0)
    return MethodOutput(maps={"intensity_z": z, "intensity_z_brighter": z, "equalized": equalized})
