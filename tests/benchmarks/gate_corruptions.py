"""Scans that the input gate's table is made of: corrupted healthy heads, other sequences, patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monailabel_app.io.images import read_volume
from monailabel_app.pipelines.ixi import IxiScan
from monailabel_app.preprocessing.corruptions import CORRUPTIONS, Head
from monailabel_app.types import BrainMask, Volume

__all__ = ["CORRUPTIONS", "head_of", "other_sequences", "patients"]


def head_of(scan: IxiScan, seed: int) -> Head:
    """An IXI head with its own random numbers."""
    return Head(scan.volume(), scan.brain_mask(), np.random.default_rng(seed))


def other_sequences(data: Path) -> Iterator[tuple[str, Volume, BrainMask | None]]:
    """Stripped scans of patients in another sequence than T1: (name, scan, brain mask or None)."""
    for name in ("T2", "FLAIR"):
        yield f"sequence: {name}", read_volume(data / "mslub" / "patient26" / f"{name}.nii.gz"), None
    for folder in sorted((data / "brats2015").iterdir()):
        brain = read_volume(folder / "brainmask.nii.gz").data[0] > 0.5
        for name in ("Flair", "T1c"):
            volume = read_volume(folder / f"{name}_subtrMeanDivStd.nii.gz")
            yield f"sequence: {name.upper().replace('T1C', 'T1 with contrast')}", volume, BrainMask(brain, "given")
    for folder in sorted(path for path in (data / "lgg").iterdir() if path.is_dir())[:6]:
        yield "sequence: FLAIR", read_volume(folder / "flair.nii.gz"), None


def patients(data: Path) -> Iterator[tuple[str, Volume, BrainMask | None]]:
    """T1 scans of patients, whom the gate had better let pass: (name, scan, None)."""
    yield "patient: multiple sclerosis, T1", read_volume(data / "mslub" / "patient26" / "T1.nii.gz"), None
    for folder in sorted(path for path in (data / "lgg").iterdir() if path.is_dir())[:6]:
        yield "patient: glioma, thick T1", read_volume(folder / "t1.nii.gz"), None
