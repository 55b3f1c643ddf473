"""From a raw head to a normalised brain on the model grid, and exactly back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monailabel_app.errors import BrainNotFound, InvalidVolume
from monailabel_app.io.geometry import axcodes, resample, voxel_to_mm
from monailabel_app.types import BrainMask, PreparedVolume, Volume, to_json

from .align import align_brain
from .bias_field import n4_bias_field
from .normalize import NORMALIZATIONS, normalize_intensity
from .template import Template

_WORK_SPACING_MM = 2.0
_MARGIN_MM = 6.0


@dataclass(frozen=True)
class PrepareSettings:
    """bias_field: divide by an N4 field before normalisation (about two seconds more).

    normalization: of normalize.NORMALIZATIONS, for what the model sees; alignment always uses ``percentile``.
    """

    bias_field: bool = False
    normalization: str = "percentile"


class Preprocessor:
    """Brings volumes into the space of one template.

    extract_brain: called when no mask is given, ``extract_brain(volume) -> BrainMask``.
    """

    def __init__(self, template: Template, extract_brain: Callable[[Volume], BrainMask] | None = None) -> None:
        self.template = template
        self._extract_brain = extract_brain

    def prepare(
        self,
        volume: Volume,
        settings: PrepareSettings = PrepareSettings(),
        *,
        brain: BrainMask | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> PreparedVolume:
        """Extract, align, resample in one interpolation, normalise; every step is recorded.

        Raises InvalidVolume for more than one channel or a mask of another grid, BrainNotFound without a mask
        and without an extractor,
        AlignmentFailed when the brain does not fit the template.
        """
        if volume.data.ndim != 4 or volume.data.shape[0] != 1:
            raise InvalidVolume(
                f"expected one scalar 3-D image, got an array of shape {volume.data.shape}; send one sequence at a time"
            )
        tell = progress or (lambda stage: None)
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal started
            now = time.perf_counter()
            seconds[stage] = seconds.get(stage, 0.0) + now - started
            started = now

        tell("brain extraction")
        brain = brain or self._extract(volume)
        if brain.mask.shape != volume.shape:
            raise InvalidVolume(
                f"expected a brain mask on the scan's grid {volume.shape}, got {brain.mask.shape}; give the scan's own"
            )
        lap("brain_extraction")

        tell("alignment")
        work_shape, work_affine = _axis_aligned_grid(brain.mask, volume.affine)
        work = resample(volume.data[0], volume.affine, work_shape, work_affine)
        work_mask = resample(brain.mask.astype(np.float32), volume.affine, work_shape, work_affine) >= 0.5
        if not work_mask.any():
            raise BrainNotFound("expected a brain mask with a volume at 2 mm, got an empty one; check the scan")
        lap("resampling")
        field = None
        if settings.bias_field:
            tell("bias field")
            field = n4_bias_field(work, work_mask, (_WORK_SPACING_MM,) * 3)
            work = work / field
            lap("bias_field")
        brain_image, _ = normalize_intensity(work, work_mask)
        alignment = align_brain(
            brain_image,
            work_affine,
            work_mask,
            self.template.mean,
            self.template.affine,
            self.template.brain_mask,
        )
        lap("alignment")

        grid = (self.template.shape, self.template.affine)
        image = resample(volume.data[0], volume.affine, *grid, transform=alignment.matrix)
        mask = (
            resample(brain.mask.astype(np.float32), volume.affine, *grid, transform=alignment.matrix) >= 0.5
        )
        if field is not None:
            image = image / resample(field, work_affine, *grid, transform=alignment.matrix, fill=1.0)
        normalized, levels = NORMALIZATIONS[settings.normalization](image, mask)
        lap("resampling")

        steps = (
            {
                "step": "read",
                "shape": volume.shape,
                "spacing_mm": volume.spacing_mm,
                "axes": axcodes(volume.affine),
            },
            {
                "step": "brain_mask",
                "method": brain.method,
                "volume_ml": brain.mask.sum() * volume.voxel_volume_mm3 / 1000,
            },
            {"step": "bias_field", "applied": settings.bias_field},
            {
                "step": "align",
                "native_to_template": alignment.matrix,
                "mask_dice": alignment.mask_dice,
                "mutual_information": -alignment.metric,
            },
            {"step": "resample", "spacing_mm": _WORK_SPACING_MM, "shape": self.template.shape},
            {"step": "normalize", "kind": settings.normalization, "low": levels[0], "high": levels[1]},
        )
        return PreparedVolume(
            image=normalized[None],
            brain_mask=mask,
            model_affine=self.template.affine,
            native_to_template=alignment.matrix,
            native_affine=volume.affine,
            native_shape=volume.shape,
            native_brain_mask=brain.mask,
            steps=tuple(to_json(step) for step in steps),
            seconds=seconds,
            warnings=brain.warnings,
        )

    def _extract(self, volume: Volume) -> BrainMask:
        if self._extract_brain is None:
            raise BrainNotFound("expected a brain mask or a brain extraction model, got neither; give one of them")
        return self._extract_brain(volume)


def to_native(values: np.ndarray, prepared: PreparedVolume, *, order: int = 1) -> np.ndarray:
    """A map on the model grid, on the scan's own grid: (X, Y, Z) -> (x, y, z) float32, zero outside the brain.

    With order 0 the type stays what it was.
    """
    mask = prepared.native_brain_mask
    native = np.zeros(prepared.native_shape, dtype=values.dtype if order == 0 else np.float32)
    used = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2))]
    if not len(used[0]):
        return native
    region = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in used)
    made = resample(
        values,
        prepared.model_affine,
        prepared.native_shape,
        prepared.native_affine,
        transform=np.linalg.inv(prepared.native_to_template),
        order=order,
        region=region,
    )
    native[region] = made * mask[region]
    return native


def _axis_aligned_grid(mask: np.ndarray, affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """A 2 mm grid along the axes of RAS around the masked voxels, whatever the obliquity of ``affine``."""
    used = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not all(len(u) for u in used):
        raise BrainNotFound("expected a brain mask with voxels in it, got an empty one; check the scan")
    ends = np.array([[u[0] - 0.5, u[-1] + 0.5] for u in used])
    corners = voxel_to_mm(affine, np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
    low, high = corners.min(axis=0) - _MARGIN_MM, corners.max(axis=0) + _MARGIN_MM
    shape = tuple(int(n) for n in np.ceil((high - low) / _WORK_SPACING_MM))
    grid = np.diag([_WORK_SPACING_MM, _WORK_SPACING_MM, _WORK_SPACING_MM, 1.0])
    grid[:3, 3] = low + _WORK_SPACING_MM / 2
    return shape, grid
