"""A single axial slice of a brain, laid over one level of the template in its plane."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from monailabel_app.errors import AlignmentFailed, BrainNotFound, InvalidVolume
from monailabel_app.io.geometry import axcodes, reorient, resample
from monailabel_app.types import BrainMask, PreparedVolume, Volume, to_json

from .normalize import normalize_slice
from .template import Template

# Cross-section of an adult brain at its widest levels, in square cm, with room for small and swollen ones.
PLAUSIBLE_CM2 = (80.0, 280.0)
_BACKGROUND = 0.1  # least share of the picture outside a brain that was cut out
_CLOSING_MM = 3.0
_WORST_DICE = 0.85
_SKULL_DEPTH_MM, _CORE_DEPTH_MM, _SKULL_DARKNESS = (3.0, 14.0), 18.0, 0.35


@dataclass(frozen=True)
class SliceAlignment:
    """matrix: (4, 4) template mm from flat slice mm, a scale per axis and a shift. mask_dice: of the outlines."""

    matrix: np.ndarray
    mask_dice: float


def is_slice(volume: Volume) -> bool:
    """Whether the image is a single slice: exactly one of its sizes is 1."""
    return sum(n == 1 for n in volume.shape) == 1


def level_of(z_mm: float, template: Template) -> int:
    """The axial level of the model grid nearest to a template height. Raises InvalidVolume outside the grid."""
    level = round((z_mm - template.affine[2, 3]) / template.affine[2, 2])
    if not 0 <= level < template.shape[2]:
        raise InvalidVolume(f"expected a height inside the model grid, got {z_mm:g} mm; check the level")
    return level


def level_affine(template: Template, level: int) -> np.ndarray:
    """(4, 4) affine of one axial level of the model grid, as a grid of depth 1."""
    affine = template.affine.copy()
    affine[:3, 3] += level * affine[:3, 2]
    return affine


def stripped_slice_mask(volume: Volume) -> BrainMask:
    """The brain of a skull-stripped slice: what differs from the constant background, closed and filled.

    Closed because the sulci of a stripped slice are often as black as its background. Raises BrainNotFound when the
    slice is not stripped or shows no brain of plausible size.
    """
    data = volume.data[0]
    flat = data.reshape([n for n in volume.shape if n > 1])
    background = flat[0, 0]
    if not (flat != background).any() or (flat == background).mean() < _BACKGROUND:
        raise BrainNotFound(
            "expected a skull-stripped slice (brain on a constant background), got one without such a background; "
            "strip the whole head volume first, or send that volume: brains are found in volumes, not in slices"
        )
    spacing = [s for s, n in zip(volume.spacing_mm, volume.shape, strict=True) if n > 1]
    mask = closed_and_filled(flat != background, spacing)
    area_cm2 = float(mask.sum()) * spacing[0] * spacing[1] / 100
    if not PLAUSIBLE_CM2[0] <= area_cm2 <= PLAUSIBLE_CM2[1]:
        raise BrainNotFound(
            f"expected a slice through a brain of {PLAUSIBLE_CM2[0]:.0f} to {PLAUSIBLE_CM2[1]:.0f} square cm, found "
            f"{area_cm2:.0f}; check the pixel size, and that the slice is skull-stripped and shows the lateral "
            "ventricles"
        )
    if _has_skull(flat - background, mask, spacing):
        raise BrainNotFound(
            "expected a skull-stripped slice, got one with a dark ring like the skull's below its rim; strip the "
            "whole head volume first, or send that volume: brains are found in volumes, not in slices"
        )
    return BrainMask(mask.reshape(volume.shape), "already_stripped")


def align_slice(
    moving_mask: np.ndarray, moving_affine: np.ndarray, fixed_mask: np.ndarray, fixed_affine: np.ndarray
) -> SliceAlignment:
    """Lay the outline of brain slices over another by the first and second moments of the filled masks.

    Masks: (x, y, n) bool, n axial levels of the same heights. Affines: (4, 4), axis-parallel. A scale per axis and a
    shift, the same for all levels, match the centroids and the deviations along x and y: closed-form and
    deterministic, and a dent in the outline moves them less than it moves a bounding box. Rotation in the plane is not
    corrected. Raises AlignmentFailed when the outlines differ too much afterwards.
    """
    moving_mean, moving_std = _moments(moving_mask, moving_affine)
    fixed_mean, fixed_std = _moments(fixed_mask, fixed_affine)
    scale = fixed_std / moving_std
    matrix = np.diag([scale[0], scale[1], 1.0, 1.0])
    matrix[:2, 3] = fixed_mean - scale * moving_mean
    moved = resample(moving_mask.astype(np.float32), moving_affine, fixed_mask.shape, fixed_affine, transform=matrix)
    overlap = moved >= 0.5
    dice = 2.0 * float((overlap & fixed_mask).sum()) / max(float(overlap.sum() + fixed_mask.sum()), 1.0)
    if dice < _WORST_DICE:
        raise AlignmentFailed(
            f"expected the slice's outline to match the template's at that level (Dice at least {_WORST_DICE}), got "
            f"{dice:.2f}; check that it is axial, upright and lies at the level of the lateral ventricles"
        )
    return SliceAlignment(matrix, dice)


def prepare_slice(volume: Volume, template: Template, level: int, *, brain: BrainMask | None = None) -> PreparedVolume:
    """A single axial slice on one level of the model grid: aligned in its plane, one interpolation, normalised.

    volume: one size is 1. level: the axial index of the model grid that the slice is taken to show. brain: its mask on
    the slice's grid; None for a skull-stripped slice. The prepared volume is (1, X, Y, 1).
    Raises InvalidVolume for what is not an axial slice, and what the mask and the alignment raise.
    """
    if volume.data.ndim != 4 or volume.data.shape[0] != 1 or not is_slice(volume):
        raise InvalidVolume(f"expected a single slice, one size being 1, got shape {volume.data.shape}")
    started = time.perf_counter()
    codes = axcodes(volume.affine)
    if codes[volume.shape.index(1)] not in "SI":
        raise InvalidVolume(
            f"expected an axial slice (the size 1 along head to foot), got axes {codes} of sizes {volume.shape}; "
            "send an axial slice or the whole volume"
        )
    brain = brain or stripped_slice_mask(volume)
    if brain.mask.shape != volume.shape:
        raise InvalidVolume(
            f"expected a brain mask on the slice's grid {volume.shape}, got {brain.mask.shape}; give the slice's own"
        )
    mask, axes_affine = reorient(brain.mask, volume.affine)
    grid = level_affine(template, level)
    flat = np.diag([*np.linalg.norm(axes_affine[:3, :3], axis=0), 1.0])
    flat[2, 3] = grid[2, 3]
    aligned = align_slice(mask, flat, template.brain_mask[..., level : level + 1], grid)
    # The slice's plane, tilted or not, becomes the level's.
    matrix = aligned.matrix @ flat @ np.linalg.inv(axes_affine)
    shape = (*template.shape[:2], 1)
    image = resample(volume.data[0], volume.affine, shape, grid, transform=matrix)
    inside = resample(brain.mask.astype(np.float32), volume.affine, shape, grid, transform=matrix) >= 0.5
    normalized, levels = normalize_slice(image, inside)
    steps = (
        {"step": "read", "shape": volume.shape, "spacing_mm": volume.spacing_mm, "axes": codes},
        {"step": "brain_mask", "method": brain.method, "area_cm2": _area_cm2(brain.mask, volume)},
        {
            "step": "align_slice",
            "native_to_template": matrix,
            "mask_dice": aligned.mask_dice,
            "level": level,
            "level_mm": grid[2, 3],
        },
        {"step": "resample", "spacing_mm": float(grid[0, 0]), "shape": shape},
        {"step": "normalize", "low": levels[0], "median": levels[1]},
    )
    return PreparedVolume(
        image=normalized[None],
        brain_mask=inside,
        model_affine=grid,
        native_to_template=matrix,
        native_affine=volume.affine,
        native_shape=volume.shape,
        native_brain_mask=brain.mask,
        steps=tuple(to_json(step) for step in steps),
        seconds={"alignment": time.perf_counter() - started},
        warnings=brain.warnings,
    )


def closed_and_filled(foreground: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The largest component of (a, b), closed by a few mm and filled. The border is padded, or closing eats into it."""
    radius = [max(1, round(_CLOSING_MM / s)) for s in spacing]
    x, y = np.ogrid[-radius[0] : radius[0] + 1, -radius[1] : radius[1] + 1]
    disc = (x / (radius[0] + 0.5)) ** 2 + (y / (radius[1] + 0.5)) ** 2 <= 1
    pad = max(radius) + 1
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(foreground, pad), disc))[pad:-pad, pad:-pad]
    labels, count = ndimage.label(closed)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (labels == int(sizes.argmax())) & (labels > 0)


def _has_skull(values: np.ndarray, mask: np.ndarray, spacing: list[float]) -> bool:
    """Whether some depth below the rim is much darker than the inside, as the skull is below the scalp."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1]
    core = values[depth >= _CORE_DEPTH_MM]
    if core.size == 0:
        return False
    inside = float(np.median(core))
    rings = np.arange(_SKULL_DEPTH_MM[0], _SKULL_DEPTH_MM[1], 1.5)
    medians = [float(np.median(values[(depth >= r) & (depth < r + 1.5)])) for r in rings]
    return inside > 0 and min(medians) < _SKULL_DARKNESS * inside


def _moments(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.argwhere(mask)[:, :2]
    if len(pixels) < 2 or (np.ptp(pixels, axis=0) == 0).any():
        raise BrainNotFound("expected a brain mask with pixels in it, got an empty one; check the slice")
    points = pixels @ affine[:2, :2].T + affine[:2, 3]
    return points.mean(axis=0), points.std(axis=0)


def _area_cm2(mask: np.ndarray, volume: Volume) -> float:
    thickness = volume.spacing_mm[volume.shape.index(1)]
    return float(mask.sum()) * volume.voxel_volume_mm3 / thickness / 100
