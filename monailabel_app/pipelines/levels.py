"""Models that learnt from single slices: they analyse a few axial levels of a volume, or one slice, and say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from monailabel_app.errors import CorruptModel, InvalidVolume
from monailabel_app.io.geometry import resample
from monailabel_app.preprocessing.normalize import normalize_slice
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.preprocessing.slice_alignment import align_slice, closed_and_filled, level_affine
from monailabel_app.preprocessing.template import Template
from monailabel_app.types import PreparedVolume, Volume, to_json

Levels = tuple[int, int]
STEP = "levels"
_RECORDED = (
    "native_axis",
    "native_slices",
    "native_slices_of_brain",
    "native_first",
    "native_last",
    "template_mm",
    "levels",
)


def levels_of_config(config: Mapping[str, Any], template: Template, model_id: str) -> Levels | None:
    """First and last axial level of the model grid that a model analyses; None for a model of whole volumes.

    Raises CorruptModel for levels that are not two of the template's.
    """
    found = config.get("levels")
    if found is None:
        return None
    try:
        first, last = (int(level) for level in found)
    except (TypeError, ValueError):
        first, last = 0, -1
    if not 0 <= first <= last < template.shape[2]:
        raise CorruptModel(
            f"expected levels in {model_id}/config.yaml as [first, last] between 0 and {template.shape[2] - 1}, got "
            f"{found}; restore the model folder"
        )
    return first, last


def middle_level(levels: Levels) -> int:
    """The level that the model's slices were taken at."""
    return (levels[0] + levels[1]) // 2


def at_levels(prepared: PreparedVolume, volume: Volume, template: Template, levels: Levels) -> PreparedVolume:
    """A volume at some levels of the model grid, as slices are prepared, with a record of what that leaves out.

    prepared: on the whole model grid. At its levels the brain is closed and filled and laid over the template's
    outline in the plane, then the scan is interpolated once more from its own grid. The record becomes a step and a
    warning. Raises InvalidVolume when there is no brain at these levels, AlignmentFailed when it does not fit.
    """
    first, last = levels
    shape = (*template.shape[:2], last - first + 1)
    affine = level_affine(template, first)
    matrix = prepared.native_to_template
    mask = _filled(prepared.brain_mask[..., first : last + 1])
    if not mask.any(axis=(0, 1)).all():
        raise InvalidVolume(
            "expected a scan that shows the brain at the level of the lateral ventricles, which is all that this model "
            "knows; got one without it, send a scan that covers it or use a model of whole volumes"
        )
    aligned = align_slice(mask, affine, template.brain_mask[..., first : last + 1], affine)
    matrix = aligned.matrix @ matrix
    image = resample(volume.data[0], volume.affine, shape, affine, transform=matrix)
    native = prepared.native_brain_mask.astype(np.float32)
    mask = _filled(resample(native, volume.affine, shape, affine, transform=matrix) >= 0.5)
    image, scale = normalize_slice(image, mask)
    cut = replace(prepared, image=image[None], brain_mask=mask, model_affine=affine, native_to_template=matrix)
    record = _analysed(cut, levels)
    step = {
        "step": STEP,
        **record,
        "native_to_template": matrix,
        "mask_dice": aligned.mask_dice,
        "low": scale[0],
        "median": scale[1],
    }
    return replace(cut, steps=(*prepared.steps, to_json(step)), warnings=(*prepared.warnings, _sentence(record)))


def middle_slice(prepared: PreparedVolume) -> PreparedVolume:
    """The middle one of the levels a volume was cut to, as if it had come as a single slice."""
    middle = (prepared.brain_mask.shape[2] - 1) // 2
    affine = prepared.model_affine.copy()
    affine[:3, 3] += middle * affine[:3, 2]
    part = slice(middle, middle + 1)
    return replace(
        prepared, image=prepared.image[..., part], brain_mask=prepared.brain_mask[..., part], model_affine=affine
    )


def analysed_part(prepared: PreparedVolume) -> Mapping[str, Any] | None:
    """What ``at_levels`` recorded; None for a volume or slice that was analysed as a whole."""
    found = next((step for step in prepared.steps if step["step"] == STEP), None)
    if found is None:
        return None
    return {name: found[name] for name in _RECORDED}


def on_grid_of(values: np.ndarray, template: Template, prepared: PreparedVolume) -> np.ndarray:
    """The levels of a map on the template's grid, (X, Y, Z), that a prepared volume covers."""
    offset = (prepared.model_affine[2, 3] - template.affine[2, 3]) / template.affine[2, 2]
    first, depth = round(float(offset)), prepared.brain_mask.shape[2]
    return np.ascontiguousarray(values[..., first : first + depth])


def _filled(mask: np.ndarray) -> np.ndarray:
    """Each level closed and filled, as slices are: a stripped volume's sulci are often as empty as its background."""
    levels = [closed_and_filled(mask[..., level], (2.0, 2.0)) for level in range(mask.shape[2])]
    return np.stack(levels, axis=2)


def _analysed(cut: PreparedVolume, levels: Levels) -> dict[str, Any]:
    """Which native slices lie, at least in part, at the levels that are analysed."""
    across = (cut.native_to_template @ cut.native_affine)[2, :3] / np.linalg.norm(cut.native_affine[:3, :3], axis=0)
    axis = int(np.abs(across).argmax())
    others = tuple(a for a in range(3) if a != axis)
    inside = to_native(np.ones(cut.brain_mask.shape, dtype=np.float32), cut, order=0) > 0.5
    used, brain = np.flatnonzero(inside.any(axis=others)), np.flatnonzero(cut.native_brain_mask.any(axis=others))
    if not len(used):
        raise InvalidVolume(
            "expected a slice of the scan at the level of the lateral ventricles, got slices too far apart to have "
            "one there; send a scan with thinner slices"
        )
    half = cut.model_affine[2, 2] / 2
    low = cut.model_affine[2, 3] - half
    return {
        "native_axis": axis,
        "native_slices": len(used),
        "native_slices_of_brain": len(brain),
        "native_first": int(used[0]),
        "native_last": int(used[-1]),
        "template_mm": [float(low), float(low + 2 * half * cut.brain_mask.shape[2])],
        "levels": list(levels),
    }


def _sentence(record: Mapping[str, Any]) -> str:
    low, high = record["template_mm"]
    return (
        f"only {record['native_slices']} of the {record['native_slices_of_brain']} slices that show brain were "
        f"analysed (numbers {record['native_first'] + 1} to {record['native_last'] + 1}, {high - low:.0f} mm around "
        "the level of the lateral ventricles): this model learnt from single slices there, and the empty result in all "
        "other slices says nothing about them"
    )
