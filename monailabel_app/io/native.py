"""The geometry a file states, kept as it stands, so that a result can be written into exactly the same
geometry.

An affine alone is not enough: a NIfTI header holds two (qform and sform, each with a code), ITK and nibabel
prefer different ones, and the quaternion in float32 does not survive a conversion bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from monailabel_app.io.geometry import RAS_LPS

NIFTI_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


@dataclass(frozen=True)
class NativeGeometry:
    """What a file says about its grid.

    shape: voxels along x, y, z.
    affine: (4, 4) voxel index -> RAS mm, the one ITK (3D Slicer) would use, nibabel's where ITK has none.
    origin, spacing, direction: ITK's own numbers (LPS mm; direction row-major).
    nifti: the geometry fields of a NIfTI header and ``pixdim``, raw; None for other formats.
    nifti_version: 1 or 2 (0 for other formats).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    nifti: Mapping[str, np.ndarray] | None = None
    nifti_version: int = 0


def from_itk(
    image: sitk.Image | sitk.ImageFileReader, shape: tuple[int, ...] | None = None
) -> NativeGeometry:
    """The geometry of a 3-D ITK image, or of a reader that has read the image information.

    A 4-D image of one frame counts as 3-D.
    """
    size, dimension = image.GetSize(), image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    origin, spacing = image.GetOrigin()[:3], image.GetSpacing()[:3]
    return NativeGeometry(
        shape=tuple(int(n) for n in (shape or size)[:3]),
        affine=itk_affine(origin, spacing, direction),
        origin=tuple(origin),
        spacing=tuple(spacing),
        direction=tuple(float(v) for v in direction.ravel()),
    )


def from_affine(shape: tuple[int, ...], affine: np.ndarray) -> NativeGeometry:
    """The geometry of a grid that came from no file, or from one that ITK cannot describe (sheared)."""
    lps = RAS_LPS @ np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return NativeGeometry(
        shape=tuple(int(n) for n in shape[:3]),
        affine=np.asarray(affine, dtype=np.float64),
        origin=tuple(float(v) for v in lps[:3, 3]),
        spacing=tuple(float(v) for v in spacing),
        direction=tuple(float(v) for v in (lps[:3, :3] / spacing).ravel()),
    )


def itk_affine(origin, spacing, direction) -> np.ndarray:
    """ITK's origin, spacing and direction (LPS) as an affine from voxel index to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, dtype=np.float64).reshape(3, 3) * np.asarray(
        spacing, dtype=np.float64
    )
    affine[:3, 3] = origin
    return RAS_LPS @ affine
