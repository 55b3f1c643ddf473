"""Patch against patch: mean squared difference and Wasserstein distance of intensities, and where they are strongest.

Woodland et al. (Bioengineering 12(10):1106, 2025): an image and its reconstruction are compared in square patches of
the slice, and the strongest patch says how anomalous the image is and where. The 1-Wasserstein distance of two sets of
as many intensities is the mean difference of the sorted ones:

    W(a, b) = 1/n sum_i |a_(i) - b_(i)|

It does not ask where within the patch an intensity lies: edges that the reconstruction puts a little aside cost
nothing, a lesion does. Patches are cut along the first two axes, one slice at a time; both images count as 0 outside
the brain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring.inputs import ArrayLike, score_inputs

PatchScore = Literal["wasserstein", "mse"]
MAP_PATCH = 9  # 18 mm on the model grid
STRONGEST_PATCH = 12  # 24 mm
_MIN_BRAIN = 0.25  # of a patch that may be the strongest
_CANDIDATES = 8
_BLOCK = 2**22  # numbers sorted at once


@dataclass(frozen=True)
class StrongestPatch:
    """value: its score. low, high: its first voxel and the one after its last, along x, y and z."""

    value: float
    low: tuple[int, int, int]
    high: tuple[int, int, int]


def wasserstein_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1-Wasserstein distance along the last axis of two tensors (..., n): (...)."""
    return (first.sort(dim=-1).values - second.sort(dim=-1).values).abs().mean(dim=-1)


def squared_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean squared difference along the last axis of two tensors (..., n): (...)."""
    return (first - second).square().mean(dim=-1)


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "wasserstein": wasserstein_distance,
    "mse": squared_distance,
}


def wasserstein_map(
    image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike, *, patch: int = MAP_PATCH
) -> np.ndarray:
    """The distance of the patch around each brain voxel, 0 outside: (X, Y, Z) float32.

    patch: side in voxels, odd. Raises InvalidSettings for another one.
    """
    return _patch_map(image, reconstruction, brain_mask, patch, "wasserstein")


def mse_patch_map(
    image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike, *, patch: int = MAP_PATCH
) -> np.ndarray:
    """The mean squared difference of the patch around each brain voxel, 0 outside: (X, Y, Z) float32.

    patch: side in voxels, odd. Raises InvalidSettings for another one.
    """
    return _patch_map(image, reconstruction, brain_mask, patch, "mse")


def strongest_patch(
    image: ArrayLike,
    reconstruction: ArrayLike,
    brain_mask: ArrayLike,
    *,
    patch: int = STRONGEST_PATCH,
    score: PatchScore = "wasserstein",
    stride: int = 4,
) -> StrongestPatch:
    """The patch of ``patch`` x ``patch`` x 1 voxels that differs most, of those that are brain for a quarter or more.

    Looked for in steps of ``stride``, then voxel by voxel around the strongest of these; a stride of 1 looks at every
    patch. Raises InvalidSettings for an unknown score or a stride or patch below 1, InvalidVolume for an image that is
    smaller than a patch or holds no patch of brain.
    """
    if score not in _DISTANCES or stride < 1 or patch < 1:
        raise InvalidSettings(
            f"Expected a score out of {', '.join(get_args(PatchScore))}, a patch and a stride of at least 1, "
            f"got {score!r}, {patch} and {stride}"
        )
    first, second, brain = _inside(image, reconstruction, brain_mask)
    limits = tuple(side - patch for side in first.shape[:2])
    if min(limits) < 0:
        raise InvalidVolume(f"Expected slices of at least {patch} x {patch}, got {tuple(first.shape[:2])}")
    share = functional.avg_pool2d(brain.float().permute(2, 0, 1)[:, None], patch, stride=1)[:, 0].permute(1, 2, 0)
    eligible = share >= _MIN_BRAIN
    coarse = torch.zeros_like(eligible)
    steps = [sorted({*range(0, limit + 1, stride), limit}) for limit in limits]
    coarse[torch.tensor(steps[0])[:, None], torch.tensor(steps[1])] = True
    starts = torch.nonzero(eligible & coarse)
    if not len(starts):
        starts = torch.nonzero(eligible)
    if not len(starts):
        raise InvalidVolume(f"Expected a patch of {patch} x {patch} voxels with brain in it, found none")
    values = _at(first, second, starts, patch, _DISTANCES[score])
    if stride > 1:
        best = starts[values.topk(min(_CANDIDATES, len(values))).indices]
        reach = torch.arange(1 - stride, stride, device=best.device)
        moves = torch.cartesian_prod(reach, reach, reach.new_zeros(1))
        around = (best[:, None] + moves).reshape(-1, 3)
        for axis, limit in enumerate(limits):
            around[:, axis].clamp_(0, limit)
        around = torch.unique(around, dim=0)
        starts = around[eligible[tuple(around.T)]]
        values = _at(first, second, starts, patch, _DISTANCES[score])
    x, y, z = starts[values.argmax()].tolist()
    return StrongestPatch(float(values.max()), (x, y, z), (x + patch, y + patch, z + 1))


def _patch_map(
    image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike, patch: int, score: PatchScore
) -> np.ndarray:
    if patch < 1 or patch % 2 == 0:
        raise InvalidSettings(f"Expected a patch with an odd side, got {patch}")
    first, second, brain = _inside(image, reconstruction, brain_mask)
    result = torch.zeros_like(first)
    rim = patch // 2
    first, second = (functional.pad(v, (0, 0, rim, rim, rim, rim)) for v in (first, second))
    places = torch.nonzero(brain)  # of the patches' first voxels in the padded images
    if len(places):
        result[brain] = _at(first, second, places, patch, _DISTANCES[score])
    return result.cpu().numpy()


def _inside(
    image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, reconstruction, brain_mask = score_inputs(image, reconstruction, brain_mask)
    return image * brain_mask, reconstruction * brain_mask, brain_mask


def _at(
    first: torch.Tensor,
    second: torch.Tensor,
    starts: torch.Tensor,
    patch: int,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The distance of the patches that begin at ``starts`` (n, 3): (n,)."""
    cut_first, cut_second = (v.unfold(0, patch, 1).unfold(1, patch, 1) for v in (first, second))
    values = [
        distance(cut_first[tuple(part.T)].flatten(1), cut_second[tuple(part.T)].flatten(1))
        for part in starts.split(max(1, _BLOCK // patch**2))
    ]
    return torch.cat(values)
