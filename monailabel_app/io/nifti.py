"""NIfTI files: voxels through the scale slope, geometry as ITK (3D Slicer) takes it, header fields kept.

Of a file that somebody sent only the 348 or 540 bytes of the header are looked at before it is judged. Header
extensions are passed over, and ITK, asked for the geometry, sees a copy of the header and nothing else.
"""

from __future__ import annotations

import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.checks import check_shape
from monailabel_app.io.geometry import check_affine
from monailabel_app.io.itk import itk_header
from monailabel_app.io.native import NIFTI_FIELDS, NativeGeometry, from_affine, from_itk
from monailabel_app.io.stored import Damaged, Stored, read_stored, unpacked

logger = logging.getLogger(__name__)

# Magic, class and size of the two versions of a header with its voxels in the same file.
_VERSIONS = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}
# What header extensions may take; a DICOM header or a page of notes is thousands of times smaller.
_MAX_EXTENSIONS = 64 * 2**20
_NO_HEADER = (
    "expected a NIfTI image, got a file without a valid NIfTI header: is it complete, and is it really NIfTI? Export "
    "the scan again"
)


@dataclass(frozen=True)
class _Opened:
    raw: nib.Nifti1Header
    header: nib.Nifti1Header
    stored: Stored
    geometry: NativeGeometry
    warnings: tuple[str, ...]


def nifti_geometry(path: Path) -> NativeGeometry:
    """The geometry of a NIfTI file, from its header only. Raises UnreadableVolume, InvalidVolume."""
    return _open(path).geometry


def read_nifti(path: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32, geometry and warnings. Raises UnreadableVolume, InvalidVolume."""
    opened = _open(path)
    try:
        slope, inter = opened.header.get_slope_inter()
    except HeaderDataError:
        raise InvalidVolume(
            "expected a finite intercept of the grey values, got NaN or infinity beside a valid slope: repair the "
            "image header"
        ) from None
    scale = (1.0 if slope is None else slope, 0.0 if inter is None else inter)

    def scaled(piece: np.ndarray) -> np.ndarray:
        # nibabel's own arithmetic, so that values are its values to the bit.
        return np.asarray(ArrayProxy(io.BytesIO(piece.tobytes()), ((piece.size,), piece.dtype, 0, *scale)), np.float32)

    flat = read_stored(opened.stored, scaled)
    return flat.reshape(opened.geometry.shape, order="F"), opened.geometry, opened.warnings


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


def _open(path: Path) -> _Opened:
    packing = "deflate" if path.name.lower().endswith(".gz") else "raw"
    raw, header, version = _read_header(path, packing)
    dtype, sizes = _dtype_of(raw), _sizes_of(raw)
    shape = check_shape(sizes, max(2, len(dtype.fields or ())) if dtype.kind not in "iuf" else 1)
    count = int(np.prod(shape, dtype=object))
    start = _start_of(raw, path, count * dtype.itemsize, packing)
    if packing == "raw":
        stored = Stored(path, dtype, count, start=start)
    else:
        stored = Stored(path, dtype, count, skip=start, packing=packing)
    stored.check_length()
    pixdim = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        seen = " x ".join(f"{v:g}" for v in pixdim)
        raise InvalidVolume(
            f"expected voxel sizes above zero, got {seen} in the header: repair the image header"
        )
    return _Opened(raw, header, stored, *_geometry(raw, header, shape, version))


def _read_header(path: Path, packing: str) -> tuple[nib.Nifti1Header, nib.Nifti1Header, int]:
    """The header as it stands, the same after nibabel's repairs, and its version."""
    try:
        with unpacked(path, packing) as stream:
            block = stream.read(max(_VERSIONS))
    except (Damaged, OSError):
        raise UnreadableVolume(_NO_HEADER) from None
    for order, sign in (("little", "<"), ("big", ">")):
        kind, magic = _VERSIONS.get(int.from_bytes(block[:4], order), (None, b""))
        if kind is None or len(block) < kind.template_dtype.itemsize:
            continue
        block = block[: kind.template_dtype.itemsize]
        try:
            with np.errstate(all="ignore"):
                raw = kind(block, endianness=sign, check=False)
                if not raw["magic"].item().startswith(magic):
                    break
                _dtype_of(raw)
                # Checking repairs silently (zero and negative voxel sizes); the checks here need what the file says.
                checked = kind(block, endianness=sign, check=True)
        except (HeaderDataError, ValueError, OverflowError, TypeError):
            break
        return raw, checked, 2 if kind is nib.Nifti2Header else 1
    raise UnreadableVolume(_NO_HEADER)


def _dtype_of(raw: nib.Nifti1Header) -> np.dtype:
    try:
        return raw.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise UnreadableVolume(
            f"expected numbers of a type that NIfTI defines, got type code {int(raw['datatype'])}: the header is "
            "damaged, or the file needs another program"
        ) from None


def _sizes_of(raw: nib.Nifti1Header) -> list[int]:
    number = int(raw["dim"][0])
    if not 1 <= number <= 7:
        raise UnreadableVolume(
            f"expected 1 to 7 dimensions in the header, got {number}: the header is damaged, export the scan again"
        )
    return [int(n) for n in raw["dim"][1 : number + 1]]


def _start_of(raw: nib.Nifti1Header, path: Path, promised: int, packing: str) -> int:
    """Byte of the unpacked file at which the voxels begin."""
    least = raw.single_vox_offset
    offset = float(raw["vox_offset"])
    if offset == 0:
        return least
    held = path.stat().st_size - promised if packing == "raw" else least + _MAX_EXTENSIONS
    if not least <= offset <= max(least, min(held, least + _MAX_EXTENSIONS)):
        raise UnreadableVolume(
            f"expected the voxels to begin at byte {least} or after its extensions, got {offset:g} in the header: the "
            "file is truncated or its header damaged, export the scan again"
        )
    return int(offset)


def _geometry(raw, header, shape, version: int) -> tuple[NativeGeometry, tuple[str, ...]]:
    warnings: list[str] = []
    with np.errstate(all="ignore"):
        affine = _best_affine(header)
        try:
            reader = _in_itk(raw)
            # Of a single slice along the last axis ITK makes a 2-D image, without a place in space.
            base = from_affine(shape, affine) if reader.GetDimension() < 3 else from_itk(reader, shape)
        except RuntimeError:
            # Sheared: ITK refuses what is not orthonormal. nibabel takes it, and so do we.
            logger.info("the geometry is not orthonormal; the affine is used as it stands")
            base = from_affine(shape, affine)
            warnings.append("the voxel axes are not at right angles: viewers built on ITK cannot show this file")
    if int(raw["qform_code"]) == 0 and int(raw["sform_code"]) == 0:
        warnings.append("the header states no orientation: left and right are a guess")
    elif _two_ways(header):
        warnings.append(
            "the header states two orientations that contradict each other (qform, sform): the one that 3D Slicer uses "
            "was taken, and left and right may be the other way round"
        )
    fields = {name: np.array(raw[name]) for name in (*NIFTI_FIELDS, "pixdim")}
    geometry = NativeGeometry(
        shape, base.affine, base.origin, base.spacing, base.direction, nifti=fields, nifti_version=version
    )
    return geometry, tuple(warnings)


def _best_affine(header: nib.Nifti1Header) -> np.ndarray:
    try:
        affine = header.get_best_affine()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        raise InvalidVolume(
            "expected a rotation in the header (quaternion), got numbers that are none: repair the image header"
        ) from None
    return check_affine(affine, "the voxel-to-space matrix")


def _two_ways(header: nib.Nifti1Header) -> bool:
    """Whether a voxel axis runs elsewhere by the qform than by the sform; some degrees are no other way."""
    if int(header["qform_code"]) == 0 or int(header["sform_code"]) == 0:
        return False
    try:
        one, other = (
            form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (header.get_qform(), header.get_sform())
        )
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return False
    return bool(((one * other).sum(axis=0) < 0.7).any())


def _in_itk(raw: nib.Nifti1Header):
    """ITK's view of the geometry. Raises RuntimeError (SimpleITK's) where ITK has none."""
    copy = raw.copy()
    copy["vox_offset"] = copy.single_vox_offset
    copy["intent_code"], copy["scl_slope"], copy["scl_inter"] = 0, 1, 0
    # Of one byte, as ITK does not know all types of voxels.
    copy["datatype"], copy["bitpix"] = 2, 8
    with tempfile.NamedTemporaryFile(prefix="header_", suffix=".nii") as file:
        file.write(copy.binaryblock + b"\0\0\0\0")
        file.flush()
        return itk_header(Path(file.name))


def _sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
