"""A small finding on a small series, and programs of others that judge or read the DICOM objects made of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from monailabel_app.io.dicom_seg import Algorithm
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.types import Finding, Volume
from tests.dicom_factory import Series, write_series

ALGORITHM = Algorithm("monailabel-anomaly ddpm_t1", "0.1.0+0123abcd")
MODEL_HASH = "0123456789abcdef" * 4
SHAPE = (12, 14, 10)
SMALL = (slice(8, 9), slice(1, 3), slice(6, 7))
LARGE = (slice(2, 6), slice(3, 5), slice(2, 5))


def small_series(folder: Path, plane: str = "axial", seed: int = 0) -> Series:
    """A series of a volume without symmetry, voxels of 1.5 x 2 x 3 mm."""
    rng = np.random.default_rng(seed)
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-9.0, 7.0, 30.0)
    data = np.round(rng.random((1, *SHAPE)) * 900).astype(np.float32)
    return write_series(folder, Volume(data, affine), plane=plane, seed=seed)


def small_finding(series: Series, **changes) -> Finding:
    """A finding of two lesions on the series' own grid: 1 (the larger) in ``LARGE``, 2 in ``SMALL``."""
    volume = series.volume
    score = np.random.default_rng(1).random(volume.shape).astype(np.float32)
    score[LARGE], score[SMALL] = 4.25, 6.5
    score[LARGE][0, 0, 0] = 5.125
    regions = np.zeros(volume.shape, np.uint8)
    regions[LARGE], regions[SMALL] = 142, 37
    mask, lesions = find_lesions(
        score,
        np.ones(volume.shape, bool),
        volume.affine,
        threshold=3.0,
        min_volume_mm3=1.0,
        regions=regions,
        region_names={142: "right middle frontal gyrus", 37: "left caudate"},
    )
    values = {
        "mask": mask,
        "anomaly_map": score,
        "brain_mask": np.ones(volume.shape, bool),
        "affine": volume.affine,
        "lesions": lesions,
        "anomaly_score": 4.375,
        "p_value": 0.0123,
        "threshold": 3.0,
        "model_id": "ddpm_t1",
        "model_hash": MODEL_HASH,
        "settings": {"operating_point": "balanced", "score": "l1", "seed": 0},
        "seconds": {},
        "warnings": ("the scan states modality 'OT', where MR is expected",),
    }
    return Finding(**values | changes)


def empty_finding(series: Series, **changes) -> Finding:
    """The same without a lesion."""
    return small_finding(series, mask=np.zeros(series.volume.shape, np.uint8), lesions=(), **changes)


def errors_of(path: Path) -> list[str]:
    """What ``dciodvfy`` calls an error in a DICOM file; the test is skipped where it is not installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("needs dciodvfy (Debian package dicom3tools)")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace", timeout=300)
    told = (done.stdout + done.stderr).splitlines()
    assert told, "dciodvfy names at least the kind of object"
    return [line for line in told if line.startswith("Error")]


def run_dcmqi(name: str, *arguments: object) -> None:
    """Run a converter of dcmqi, which 3D Slicer reads such objects with; skipped where it is not installed."""
    program = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"needs {name} (Python package dcmqi)")
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, timeout=300)
