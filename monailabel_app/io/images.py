"""Scans in, labels and maps out, in exactly the geometry of the scan.

``read_volume`` takes whatever a viewer or a folder holds and returns one contract, or raises an error that
says what was expected, what came and what to do. No message carries a file or patient name.
"""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.files import replacing
from monailabel_app.io.checks import check_depth, check_grid, clean_voxels
from monailabel_app.io.dicom import dicom_geometry, read_dicom
from monailabel_app.io.geometry import check_affine
from monailabel_app.io.itk import itk_geometry, quiet_itk, read_itk
from monailabel_app.io.native import NativeGeometry, from_affine
from monailabel_app.io.nifti import nifti_geometry, nifti_image, read_nifti
from monailabel_app.io.picture import PICTURE_SUFFIXES, picture_geometry, read_picture
from monailabel_app.types import Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_NOTHING_LEFT = 2**18  # bytes free on a disk that could not take a file


def read_volume(
    path: str | os.PathLike[str], *, slices: bool = False, pixel_mm: float | None = None
) -> Volume:
    """The scan in a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or in a folder holding a DICOM series.

    The volume keeps the file's voxel order. Its affine is the one ITK and 3D Slicer use (for NIfTI that is
    not always nibabel's), its name is a checksum of its content.

    slices: accept single slices too, in the formats above or as a .png picture, for the models that know them.
    pixel_mm: the pixel size of a picture, for one that does not state it.

    Raises UnreadableVolume (missing, truncated, not an image) and InvalidVolume (2-D, 4-D, colour, NaN,
    constant, broken geometry, missing slices).
    """
    path = Path(path)
    if slices and path.name.lower().endswith(PICTURE_SUFFIXES) and path.is_file():
        data, native, warnings = read_picture(path, pixel_mm)
    else:
        data, native, warnings = _reader(path, _READERS)
    if not slices:
        check_depth(native.shape)
    affine = check_grid(native.affine)
    data, repairs = clean_voxels(data)
    data = np.ascontiguousarray(data, dtype=np.float32)[None]
    checksum = zlib.crc32(affine.tobytes(), zlib.crc32(data.reshape(-1).view(np.uint8)))
    return Volume(data, affine, f"scan-{checksum:08x}", (*warnings, *repairs), native)


def read_geometry(path: str | os.PathLike[str]) -> NativeGeometry:
    """The geometry of what ``read_volume`` would read with ``slices``, without its voxels. Same errors."""
    if Path(path).name.lower().endswith(PICTURE_SUFFIXES) and Path(path).is_file():
        return picture_geometry(Path(path))
    return _reader(Path(path), _GEOMETRIES)


def write_labelmap(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    reference: Volume | str | os.PathLike[str],
    *,
    compress: bool = True,
) -> None:
    """``labels`` (x, y, z), whole numbers 0 to 255 or bool, as uint8 in the geometry of ``reference``.

    path: .nii.gz, .nii, .nrrd or .mha; written whole or not at all (temporary file, then renamed).
    reference: the volume the labels belong to, or its file or DICOM folder. Size, spacing, origin and
        direction of the result equal the reference's, read by SimpleITK and by nibabel alike: to the bit, but
        for NRRD, which stores spacing times direction (1e-14), and for what was never NIfTI written as NIfTI,
        which stores single precision.
    compress: gzip inside .nrrd and .mha (for NIfTI the suffix decides).

    Raises InvalidVolume for another shape, values or suffix, OSError where the disk is full.
    """
    labels = np.asarray(labels)
    if labels.dtype != np.uint8:
        whole = labels.dtype.kind in "bui" or (
            labels.dtype.kind == "f" and bool((labels == labels.round()).all())
        )
        if not whole or (labels.size and (labels.min() < 0 or labels.max() > 255)):
            raise InvalidVolume(
                f"expected labels as whole numbers 0 to 255, got {labels.dtype} outside of that"
            )
        labels = labels.astype(np.uint8)
    _write(Path(path), labels, _native(reference), compress)


def write_map(
    path: str | os.PathLike[str],
    values: np.ndarray,
    reference: Volume | str | os.PathLike[str],
    *,
    compress: bool = True,
) -> None:
    """``values`` (x, y, z) as float32 in the geometry of ``reference``; otherwise as ``write_labelmap``.

    Raises InvalidVolume for another shape or suffix, and for values that are not finite.
    """
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InvalidVolume(
            "expected finite values in the map, got NaN or infinity: this is a fault of the method"
        )
    _write(Path(path), values, _native(reference), compress)


_READERS = {NIFTI_SUFFIXES: read_nifti, ITK_SUFFIXES: read_itk, "folder": read_dicom}
_GEOMETRIES = {NIFTI_SUFFIXES: nifti_geometry, ITK_SUFFIXES: itk_geometry, "folder": dicom_geometry}


def _reader(path: Path, readers):
    if path.is_dir():
        return readers["folder"](path)
    name = path.name.lower()
    accepted = ", ".join((*NIFTI_SUFFIXES, *ITK_SUFFIXES))
    if not path.is_file():
        raise UnreadableVolume("expected an image file or a DICOM folder, got a path where there is nothing")
    if path.stat().st_size == 0:
        raise UnreadableVolume("expected an image, got an empty file (0 bytes): copy or export it again")
    for suffixes, read in readers.items():
        if suffixes != "folder" and name.endswith(suffixes):
            return read(path)
    suffix = path.suffix if len(path.suffix) <= 8 else ""
    hint = " For DICOM, send the folder of the series." if suffix.lower() in ("", ".dcm", ".ima") else ""
    raise UnreadableVolume(
        f"expected one of {accepted} or a DICOM folder, got {suffix or 'no suffix'}.{hint}"
    )


def _native(reference: Volume | str | os.PathLike[str]) -> NativeGeometry:
    if not isinstance(reference, Volume):
        return read_geometry(reference)
    if isinstance(reference.native, NativeGeometry) and np.array_equal(
        reference.native.affine, reference.affine
    ):
        return reference.native
    return from_affine(reference.shape, check_affine(reference.affine))


def _write(path: Path, data: np.ndarray, native: NativeGeometry, compress: bool) -> None:
    if data.shape != native.shape:
        raise InvalidVolume(f"expected an array of the scan's shape {native.shape}, got {data.shape}")
    suffix = next((s for s in WRITABLE_SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise InvalidVolume(f"expected a file name ending in one of {', '.join(WRITABLE_SUFFIXES)}")
    # Not tempfile, whose files are private to their owner: a result is as readable as any other file here.
    with replacing(path, ending=suffix) as partial:
        if suffix in NIFTI_SUFFIXES:
            nib.save(nifti_image(data, native), partial)
        else:
            _write_itk(partial, data, native, compress)


def _write_itk(path: Path, data: np.ndarray, native: NativeGeometry, compress: bool) -> None:
    try:
        with quiet_itk():
            sitk.WriteImage(_itk_image(data, native), str(path), useCompression=compress)
    except RuntimeError as error:
        # ITK does not say why; while the part that it has written is there, the disk does.
        if shutil.disk_usage(path.parent).free < _NOTHING_LEFT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _itk_image(data: np.ndarray, native: NativeGeometry) -> sitk.Image:
    image = sitk.GetImageFromArray(data.transpose(2, 1, 0))
    image.SetOrigin(native.origin)
    image.SetSpacing(native.spacing)
    image.SetDirection(native.direction)
    return image
