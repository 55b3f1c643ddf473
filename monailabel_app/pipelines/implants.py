"""Healthy scans with real lesion shapes implanted: an evaluation set whose ground truth is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from monailabel_app.errors import EvaluationFailed, TrainingFailed
from monailabel_app.io.geometry import resample
from monailabel_app.preprocessing.lesion_implant import implant_lesion
from monailabel_app.types import Volume

# The box of the brain in the lesion shapes' standard space (RAS mm) and in the template's: shapes are carried over
# by matching them, so that a cortical lesion stays near the cortex.
_STANDARD_BOX = np.array([[-70.0, -104.0, -64.0], [70.0, 72.0, 78.0]])
_MIN_INSIDE = 0.7


@dataclass(frozen=True)
class ImplantPlan:
    """One case: which healthy scan, which shape, how it looks. contrast: signed share of the local intensity."""

    scan: int
    shape: int
    contrast: float
    edge_sigma_mm: float


def list_shapes(folder: Path) -> list[Path]:
    """The lesion shape files of a folder. Raises TrainingFailed when there are none."""
    paths = sorted(Path(folder).glob("*.nii.gz"))
    if not paths:
        raise TrainingFailed(f"expected lesion shapes (*.nii.gz) in {folder}, found none; give their folder")
    return paths


def plan_implants(
    scans: int, shapes: int, per_scan: int, *, seed: int, contrast: tuple[float, float] = (0.10, 0.40)
) -> list[ImplantPlan]:
    """``per_scan`` cases per scan: shapes without repetition, contrast of either sign, edge 1 to 3 mm.

    contrast: its least and greatest size, as a share of the local intensity.
    """
    generator = np.random.default_rng(seed)
    order = np.resize(generator.permutation(shapes), scans * per_scan)
    plans = []
    for index, shape in enumerate(order):
        sign = 1.0 if index % 2 else -1.0
        plans.append(
            ImplantPlan(
                scan=index // per_scan,
                shape=int(shape),
                contrast=sign * float(generator.uniform(*contrast)),
                edge_sigma_mm=float(generator.uniform(1.0, 3.0)),
            )
        )
    return plans


def standard_to_template(brain_mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(4, 4) standard-space mm -> template mm, laying one brain box over the other."""
    voxels = np.argwhere(brain_mask)
    box = np.stack([voxels.min(axis=0) - 0.5, voxels.max(axis=0) + 0.5]) @ affine[:3, :3].T + affine[:3, 3]
    scale = (box[1] - box[0]) / (_STANDARD_BOX[1] - _STANDARD_BOX[0])
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = box[0] - scale * _STANDARD_BOX[0]
    return matrix


def shape_on_grid(
    path: Path, to_grid_mm: np.ndarray, shape: Sequence[int], affine: np.ndarray, brain_mask: np.ndarray
) -> np.ndarray | None:
    """The lesion shape on a grid, cut to the brain: (x, y, z) bool; None when most of it would lie outside.

    to_grid_mm: (4, 4) standard-space mm -> mm of the grid's affine.
    """
    image = nib.load(path)
    shares = resample(np.asarray(image.dataobj, dtype=np.float32), image.affine, shape, affine, transform=to_grid_mm)
    lesion = shares >= 0.5
    inside = lesion & brain_mask
    return inside if lesion.sum() >= 20 and inside.sum() >= _MIN_INSIDE * lesion.sum() else None


def implant(
    image: np.ndarray, lesion: np.ndarray, brain_mask: np.ndarray, plan: ImplantPlan, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The scan with the lesion in it, (x, y, z) float32, and the exact ground truth (x, y, z) bool."""
    return implant_lesion(
        image,
        lesion,
        contrast=plan.contrast,
        spacing_mm=spacing_mm,
        edge_sigma_mm=plan.edge_sigma_mm,
        brain_mask=brain_mask,
    )


def implant_first_fitting(
    volume: Volume, brain_mask: np.ndarray, plan: ImplantPlan, shapes: Sequence[Path], to_native_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Path]:
    """``implant`` with the planned shape, or with the next one that fits into the brain, which is returned too.

    brain_mask: (x, y, z) bool on the scan's grid. to_native_mm: (4, 4) standard-space mm -> mm of the scan. Raises
    EvaluationFailed when no shape fits.
    """
    for offset in range(len(shapes)):
        shape = shapes[(plan.shape + offset) % len(shapes)]
        lesion = shape_on_grid(shape, to_native_mm, volume.shape, volume.affine, brain_mask)
        if lesion is not None:
            return *implant(volume.data[0], lesion, brain_mask, plan, volume.spacing_mm), shape
    raise EvaluationFailed("expected a lesion shape that fits into the brain, none did; check the alignment")
