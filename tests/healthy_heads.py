"""Many healthy heads out of the one in tests/data: moved, stretched, re-scaled in intensity, with own noise."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage


def write_heads(source: Path, folder: Path, names: list[str]) -> list[Path]:
    """One .nii.gz per name, each another head, repeatable by its place in the list."""
    image = nib.load(source)
    data = np.asarray(image.dataobj, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, name in enumerate(names):
        path = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(_another(data, np.random.default_rng(number)), image.affine), path)
        paths.append(path)
    return paths


def _another(data: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    middle = (np.array(data.shape) - 1) / 2
    matrix = np.diag(generator.uniform(0.96, 1.04, 3)) + generator.uniform(-0.02, 0.02, (3, 3))
    offset = middle - matrix @ (middle + generator.uniform(-2, 2, 3))
    moved = ndimage.affine_transform(data, matrix, offset, order=1)
    top = float(np.percentile(moved, 99.5))
    changed = top * np.clip(moved / top, 0, None) ** generator.uniform(0.85, 1.15)
    return (changed + generator.normal(0, 0.01 * top, data.shape)).clip(0).astype(np.float32)
