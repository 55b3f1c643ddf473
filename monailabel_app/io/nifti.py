"""NIfTI files: voxels through the scale slope, geometry as ITK (3D Slicer) takes it, header fields kept."""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.checks import MAX_GZIP_RATIO, check_shape
from monailabel_app.io.geometry import check_affine
from monailabel_app.io.itk import itk_header
from monailabel_app.io.native import NIFTI_FIELDS, NativeGeometry, from_affine, from_itk

logger = logging.getLogger(__name__)

# What nibabel and the decompressors raise for damaged files. OSError includes gzip.BadGzipFile.
_DAMAGED = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error)


def nifti_geometry(path: Path) -> NativeGeometry:
    """The geometry of a NIfTI file, from its header only. Raises UnreadableVolume, InvalidVolume."""
    return _open(path)[1]


def read_nifti(path: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32, geometry and warnings. Raises UnreadableVolume, InvalidVolume."""
    image, geometry, warnings = _open(path)
    try:
        if path.name.lower().endswith(".gz"):
            image = type(image).from_bytes(_unzipped(path, image))
        # What is too large for float32 becomes infinite, and is judged with the other voxels.
        with np.errstate(over="ignore"):
            data = image.get_fdata(dtype=np.float32, caching="unchanged")
    except _DAMAGED:
        raise UnreadableVolume(
            f"expected {'x'.join(map(str, geometry.shape))} voxels, got fewer: the file is truncated or "
            "damaged, "
            "copy or export it again"
        ) from None
    return data.reshape(geometry.shape), geometry, warnings


def nifti_image(data: np.ndarray, geometry: NativeGeometry) -> nib.Nifti1Image:
    """``data`` (x, y, z) as a NIfTI image in ``geometry``, with the geometry fields of its file."""
    kind = nib.Nifti2Image if geometry.nifti_version == 2 else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    if geometry.nifti is None:
        # ITK reads a quaternion without its sform, so both are given; a quaternion cannot hold a shear.
        header.set_sform(geometry.affine, code=1)
        header.set_qform(geometry.affine, code=0 if _sheared(geometry.affine) else 1, strip_shears=True)
        header.set_xyzt_units("mm")
    else:
        for field in NIFTI_FIELDS:
            header[field] = geometry.nifti[field]
        header["pixdim"][:4] = geometry.nifti["pixdim"][:4]
    return kind(data, None, header)


def _open(path: Path) -> tuple[nib.Nifti1Image, NativeGeometry, tuple[str, ...]]:
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise ImageFileError("not NIfTI")
        # Loading repairs a header silently (zero and negative voxel sizes); the check needs what the file
        # says.
        with ImageOpener(str(path)) as stream:
            raw = image.header_class.from_fileobj(stream, check=False)
        dtype = image.get_data_dtype()
    except _DAMAGED:
        raise UnreadableVolume(
            "expected a NIfTI image, got a file without a valid NIfTI header: is it complete, and is it "
            "really "
            "NIfTI? Export the scan again"
        ) from None
    vector = dtype.kind not in "iuf"
    shape = check_shape(image.shape, max(2, len(dtype.fields or ())) if vector else 1)
    _check_length(path, raw, dtype, image.shape)
    pixdim = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        seen = " x ".join(f"{v:g}" for v in pixdim)
        raise InvalidVolume(
            f"expected voxel sizes above zero, got {seen} in the header: repair the image header"
        )
    return image, *_geometry(path, image, raw, shape)


def _geometry(path: Path, image: nib.Nifti1Image, raw, shape) -> tuple[NativeGeometry, tuple[str, ...]]:
    warnings: list[str] = []
    try:
        header = itk_header(path)
        # Of a single slice along the last axis ITK makes a 2-D image, without a place in space.
        flat = header.GetDimension() < 3
        base = from_affine(shape, check_affine(image.affine)) if flat else from_itk(header, shape)
    except RuntimeError:
        # Sheared: ITK refuses what is not orthonormal. nibabel takes it, and so do we.
        logger.info("the geometry is not orthonormal; the affine is used as it stands")
        base = from_affine(shape, check_affine(image.affine, "the voxel-to-space matrix"))
        warnings.append("the voxel axes are not at right angles: viewers built on ITK cannot show this file")
    if int(raw["qform_code"]) == 0 and int(raw["sform_code"]) == 0:
        warnings.append("the header states no orientation: left and right are a guess")
    fields = {name: np.array(raw[name]) for name in (*NIFTI_FIELDS, "pixdim")}
    version = 2 if isinstance(image, nib.Nifti2Image) else 1
    geometry = NativeGeometry(
        shape, base.affine, base.origin, base.spacing, base.direction, nifti=fields, nifti_version=version
    )
    return geometry, tuple(warnings)


def _unzipped(path: Path, image: nib.Nifti1Image) -> bytes:
    """The file's content up to its last voxel, with the checksum verified (nibabel stops before it)."""
    voxels = int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    with gzip.open(path) as stream:
        content = stream.read(int(image.header["vox_offset"] or image.dataobj.offset) + voxels)
        while stream.read(1 << 20):
            pass
    return content


def _check_length(path: Path, raw, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Refuses a file that cannot hold what its header promises, before the promise is allocated."""
    promised = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        held *= MAX_GZIP_RATIO
    else:
        held -= max(0, int(raw["vox_offset"]))
    if held < promised:
        raise UnreadableVolume(
            f"expected {promised} bytes of voxels as the header promises, got a file of "
            f"{path.stat().st_size}: it "
            "is truncated, copy or export it again"
        )


def _sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
