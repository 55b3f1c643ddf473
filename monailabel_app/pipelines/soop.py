"""The SOOP data folder: one skull-stripped FLAIR slice per stroke patient, and the infarct's mask."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from monailabel_app.errors import TrainingFailed, UnreadableVolume
from monailabel_app.io.geometry import resample
from monailabel_app.preprocessing.slice_alignment import level_of, prepare_slice
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.types import PreparedVolume, Volume

SPLITS = ("train_free", "val_free", "val_lesion")
# The slices lie at 18 mm of their standard space. Of the template's levels, those at 18 and 20 mm share most
# information with the slices' mean, and laying the two spaces' brain boxes over each other gives 21 mm.
LEVEL_MM = 20.0
ANALYSED_MM = 6.0  # a slice model speaks for this much above and below its level
# Column c, row r of a picture lie at x = c - 78, y = 76 - r: left is left. Found by laying the pictures' masks over
# the same patients' masks in `lesion_shapes`, whose files have a geometry.
_AFFINE = np.array([[1.0, 0, 0, -78.0], [0, 1.0, 0, -112.0], [0, 0, 1.0, 18.0], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class SoopSlice:
    """One patient's slice and infarct mask (all zero in the ``free`` splits)."""

    id: str
    image: Path
    lesion: Path

    def volume(self) -> Volume:
        """(1, 157, 189, 1) float32 on RAS axes, 1 mm. Raises UnreadableVolume."""
        return Volume(_read(self.image).astype(np.float32)[None], _AFFINE.copy(), self.id)

    def lesion_mask(self) -> np.ndarray:
        """(157, 189, 1) bool on the grid of ``volume()``. Raises UnreadableVolume."""
        return _read(self.lesion) > 0


@dataclass(frozen=True)
class SoopCase:
    """A slice on the model grid with its ground truth on both grids.

    prepared: depth 1. gt_mask: (X, Y, 1) bool on the model grid, where the smoothed native mask covers half of a pixel;
    cut to the brain. native_gt_mask: (157, 189, 1) bool at 1 mm.
    """

    id: str
    prepared: PreparedVolume
    gt_mask: np.ndarray
    native_gt_mask: np.ndarray


def list_soop(folder: Path, split: str) -> list[SoopSlice]:
    """The slices of one split, in the order of index.csv.

    Raises TrainingFailed when the folder is not the SOOP data folder or the split is empty.
    """
    folder = Path(folder)
    table = folder / "index.csv"
    if not table.is_file():
        raise TrainingFailed(f"expected index.csv in {folder}, found none; give the folder soop_flair of the data")
    with table.open(newline="") as handle:
        ids = [f"sub-{row['subject']}" for row in csv.DictReader(handle) if row["split"] == split]
    if not ids:
        raise TrainingFailed(f"expected slices of split {split!r} in {table}, found none; it is one of {SPLITS}")
    return [SoopSlice(i, folder / "flair" / f"{i}.png", folder / "mask" / f"{i}.png") for i in ids]


def levels_of(template: Template) -> tuple[int, int]:
    """First and last axial level of the model grid that a model of these slices analyses."""
    return level_of(LEVEL_MM - ANALYSED_MM, template), level_of(LEVEL_MM + ANALYSED_MM, template)


def prepare_soop(
    folder: Path, split: str, template: Template, *, progress: Callable[[int, int], None] | None = None
) -> TrainingCache:
    """One split as a training cache of depth 1: images (n, X, Y, 1), modality ``flair``."""
    slices = list_soop(folder, split)
    level = level_of(LEVEL_MM, template)
    images, masks = [], []
    for done, item in enumerate(slices, start=1):
        prepared = prepare_slice(item.volume(), template, level)
        images.append(prepared.image)
        masks.append(prepared.brain_mask)
        if progress is not None:
            progress(done, len(slices))
    return to_cache(images, masks, [item.id for item in slices], "flair")


def lesion_cases(folder: Path, template: Template, split: str = "val_lesion") -> list[SoopCase]:
    """The slices of a split with their ground truth, ready for any method. The brain masks never use the lesion's."""
    level = level_of(LEVEL_MM, template)
    cases = []
    for item in list_soop(folder, split):
        prepared, native = prepare_slice(item.volume(), template, level), item.lesion_mask()
        share = resample(
            native.astype(np.float32),
            prepared.native_affine,
            prepared.brain_mask.shape,
            prepared.model_affine,
            transform=prepared.native_to_template,
        )
        cases.append(SoopCase(item.id, prepared, (share >= 0.5) & prepared.brain_mask, native))
    return cases


def _read(path: Path) -> np.ndarray:
    """A picture as (x, y, 1), y from posterior to anterior."""
    try:
        with Image.open(path) as picture:
            rows = np.asarray(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise UnreadableVolume(
            f"expected a readable picture {path.name}, got {type(error).__name__}; restore the data folder"
        ) from None
    if rows.ndim != 2:
        raise UnreadableVolume(f"expected a grey picture {path.name}, got {rows.ndim} dimensions; restore the data")
    return np.ascontiguousarray(rows[::-1].T[..., None])
