"""The IXI data folder: T1 scans, DLMUSE region labels, and who belongs to which split."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from monailabel_app.errors import TrainingFailed
from monailabel_app.types import Volume


@dataclass(frozen=True)
class IxiScan:
    """One healthy adult: a T1 head and, on the same grid, its region labels."""

    id: str
    image: Path
    regions: Path

    def volume(self) -> Volume:
        """The scan as stored, reoriented to RAS axes (flips and permutation only)."""
        image = nib.as_closest_canonical(nib.load(self.image))
        return Volume(image.get_fdata(dtype=np.float32)[None], np.asarray(image.affine, dtype=np.float64), self.id)

    def region_labels(self) -> np.ndarray:
        """(x, y, z) uint8 DLMUSE labels on the grid of ``volume()``."""
        return np.asarray(nib.as_closest_canonical(nib.load(self.regions)).dataobj).astype(np.uint8)

    def brain_mask(self) -> np.ndarray:
        """(x, y, z) bool: the labelled voxels, closed (sulci and cisterns) and filled."""
        labelled = self.region_labels() > 0
        return ndimage.binary_fill_holes(ndimage.binary_closing(labelled, iterations=2))


def list_ixi(folder: Path, split: str) -> list[IxiScan]:
    """The scans of one split (``train`` or ``val``), in the order of participants.csv.

    Raises TrainingFailed when the folder is not the IXI data folder or the split is empty.
    """
    folder = Path(folder)
    table = folder / "participants.csv"
    if not table.is_file():
        raise TrainingFailed(f"expected participants.csv in {folder}, found none; give the folder ixi_t1 of the data")
    with table.open(newline="") as handle:
        ids = [row["id"] for row in csv.DictReader(handle) if row["split"] == split]
    if not ids:
        raise TrainingFailed(f"expected scans of split {split!r} in {table}, found none; splits are train and val")
    return [
        IxiScan(i, folder / "t1" / f"{i}_T1.nii.gz", folder / "dlmuse" / f"{i}_DLMUSE.nii.gz") for i in ids
    ]
