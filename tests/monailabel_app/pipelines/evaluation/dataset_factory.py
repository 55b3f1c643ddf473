"""Small data sets on disk, and short ways to read them."""

from pathlib import Path

import nibabel as nib
import numpy as np

from monailabel_app.pipelines.evaluation.datasets import load_dataset

FOLDER = "modality: flair\nlayout: folder\nimage: '{patient}/flair.nii.gz'\nlabel: '{patient}/mask.nii.gz'\n"


def scan(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), value, np.uint8), np.eye(4)), path)
    return path


def say(folder: Path, text: str, name: str = "set.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def load(path: Path, **more):
    return load_dataset(path, data_root=None, **more)


def names(dataset) -> dict:
    """Scan id -> label file names, None for a healthy one."""
    return {s.id: None if s.healthy else [path.name for path in s.labels] for s in dataset.scans}


def two_patients(root: Path) -> Path:
    """What ``FOLDER`` describes: p1 and p2, each with flair.nii.gz and mask.nii.gz."""
    for patient in ("p1", "p2"):
        scan(root / patient / "flair.nii.gz")
        scan(root / patient / "mask.nii.gz")
    return root
