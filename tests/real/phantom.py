"""A real head with a bright three-armed hook in it, of which no mirror image lies on itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset
from scipy.spatial import cKDTree

from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.types import Volume
from tests.dicom_factory import Series, write_series

ARMS_MM = {0: 40.0, 1: 28.0, 2: 18.0}  # to the right, the front and the top
WIDTH_MM = 8.0
CORNER_FROM_CENTRE_MM = (-25.0, 5.0, -6.0)

# The ways a series may lie in an archive: plane, and what is done to the volume or its files.
SERIES = {
    "axial": "axial",
    "sagittal": "sagittal",
    "sagittal, numbered from the other side": "sagittal",
    "coronal": "coronal",
    "oblique axial": "axial",
    "thick axial slices": "axial",
}


def with_hook(volume: Volume) -> tuple[Volume, np.ndarray]:
    """``volume`` with the hook as its brightest voxels, and the hook: (x, y, z) bool."""
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    corner = voxel_to_mm(volume.affine, (np.array(volume.shape) - 1) / 2) + np.array(CORNER_FROM_CENTRE_MM)
    offset = voxel_to_mm(volume.affine, index) - corner
    hook = np.zeros(volume.shape, bool)
    for axis, length in ARMS_MM.items():
        low, high = np.full(3, -WIDTH_MM / 2), np.full(3, WIDTH_MM / 2)
        high[axis] = length
        hook |= ((offset >= low) & (offset <= high)).all(axis=-1)
    data = volume.data.copy()
    data[0][hook] = 2 * data.max()
    return Volume(data, volume.affine, volume.name), hook


def hook_points_lps(series: Series) -> np.ndarray:
    """(n, 3) voxel centres of the hook in a written series, mm to L, P, S."""
    volume = series.volume
    points = voxel_to_mm(volume.affine, np.argwhere(volume.data[0] > 0.9 * volume.data.max()))
    return points * [-1, -1, 1]


def mask_points_lps(path: str | Path) -> np.ndarray:
    """(n, 3) centres of the marked voxels of a NIfTI or NRRD file, mm to L, P, S."""
    image = sitk.ReadImage(str(path))
    marked = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in index]) for index in marked])


def same_points(a: np.ndarray, b: np.ndarray, tolerance_mm: float = 0.05) -> bool:
    """Whether two sets of points, further apart than ``tolerance_mm`` among themselves, are the same."""
    return len(a) == len(b) and len(a) > 0 and cKDTree(a).query(b)[0].max() < tolerance_mm


def share_of(points: np.ndarray, found: np.ndarray, tolerance_mm: float = 0.05) -> float:
    """Which part of ``points`` is among ``found``."""
    return float((cKDTree(found).query(points)[0] < tolerance_mm).mean())


def write_hook_series(folder: Path, head: Volume, kind: str, seed: int) -> Series:
    """``head`` with the hook as the DICOM series ``kind`` (one of :data:`SERIES`)."""
    volume, _ = with_hook(head)
    if kind == "thick axial slices":
        axis = int(np.argmax(np.abs(volume.affine[2, :3])))
        step = np.eye(4)
        step[axis, axis] = 3
        every_third = [slice(None)] * 4
        every_third[axis + 1] = slice(None, None, 3)
        volume = Volume(volume.data[tuple(every_third)], volume.affine @ step, volume.name)
    if kind == "oblique axial":
        volume = Volume(volume.data, _turn(0.2, 0) @ _turn(-0.15, 2) @ volume.affine, volume.name)
    count = max(volume.shape)

    def from_the_other_side(k: int, dataset: FileDataset) -> None:
        dataset.InstanceNumber = count - k

    edit = from_the_other_side if "other side" in kind else None
    return write_series(folder, volume, plane=SERIES[kind], seed=seed, edit=edit)


def _turn(angle: float, axis: int) -> np.ndarray:
    """(4, 4) rotation by ``angle`` radians about a patient axis through the origin."""
    first, second = (i for i in range(3) if i != axis)
    turn = np.eye(4)
    turn[[first, second], [first, second]] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn
