"""One DICOM file of a series: where it lies in space, and its pixels.

Only tags that describe the image are taken, as the bytes they are: names, dates and numbers of patients never enter
this program, and no text of a file is decoded in a character set that the file names.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from monailabel_app.io.dicom_limits import Bounded

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_PIXEL_DATA = {"<": b"\xe0\x7f\x10\x00", ">": b"\x7f\xe0\x00\x10"}
_UNDEFINED = 0xFFFFFFFF
_TAGS = {
    "SeriesInstanceUID": 0x0020000E,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "PixelSpacing": 0x00280030,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
}
_DAMAGED = "damaged DICOM files"


@dataclass(frozen=True)
class Slice:
    """A slice by its header. start: byte of its pixels; dtype: None where they are compressed."""

    path: str
    series: str
    instance: str
    modality: str
    rows: int
    columns: int
    inverted: bool
    complete: bool
    position: np.ndarray
    orientation: np.ndarray
    pixel_spacing: np.ndarray
    start: int
    size: int
    dtype: np.dtype | None
    bits: int
    high: int
    slope: float
    intercept: float

    @property
    def normal(self) -> np.ndarray:
        """Along which slices are stacked, of length 1."""
        across = np.cross(self.orientation[:3], self.orientation[3:])
        return across / np.linalg.norm(across)

    def pixels(self) -> np.ndarray:
        """(columns, rows) float32, slope and intercept applied; of uncompressed ones. Raises OSError, ValueError."""
        count = self.rows * self.columns
        with open(self.path, "rb") as file:
            file.seek(self.start)
            stored = np.frombuffer(file.read(count * self.dtype.itemsize), dtype=self.dtype)
        stored = stored.reshape(self.rows, self.columns).T
        width = 8 * self.dtype.itemsize
        if self.bits < width:
            # Other bits may hold an overlay; of signed numbers the sign is the highest of those stored.
            stored = stored.astype(self.dtype.newbyteorder("="))
            stored = np.right_shift(np.left_shift(stored, width - 1 - self.high), width - self.bits)
        if self.slope == 1 and self.intercept == 0:
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)


def read_slice(path: str) -> Slice | str:
    """The slice in ``path``; or why it is none; or an empty text when it is no DICOM image at all."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return ""
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return ""
            file.seek(0)
            syntax = str(pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", ""))
            if syntax == _DEFLATED:
                return "deflated DICOM files (store them uncompressed)"
            tags = pydicom.dcmread(Bounded(file), stop_before_pixels=True, specific_tags=list(_TAGS.values()))
            order = ">" if syntax == _BIG_ENDIAN else "<"
            found = {name: _words(tags, tag, order) for name, tag in _TAGS.items()}
            return _slice(path, found, syntax, *_pixel_data(file, order, tags.is_implicit_VR), status.st_size)
    except InvalidDicomError:
        return ""
    except Exception:
        # Not a list of kinds: what a parser of other people's bytes raises is open-ended, and each means the same.
        return _DAMAGED


def _slice(path, found, syntax, start, length, size) -> Slice | str:
    if not found["Rows"] or not found["SeriesInstanceUID"]:
        return ""
    if _number(found, "NumberOfFrames", 1) > 1:
        return "multi-frame DICOM (convert it to single frames or NIfTI first)"
    grey = (found["PhotometricInterpretation"] or ["MONOCHROME2"])[0] in ("MONOCHROME1", "MONOCHROME2")
    if _number(found, "SamplesPerPixel", 1) != 1 or not grey:
        return "colour images"
    if not all(found[name] for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
        return "images without a position, orientation or pixel spacing"
    rows, columns = _number(found, "Rows"), _number(found, "Columns")
    allocated = _number(found, "BitsAllocated", 16)
    if min(rows, columns) < 1 or allocated not in (8, 16, 32):
        return "images of no size, or with other than 8, 16 or 32 bits per pixel"
    bits = _number(found, "BitsStored", allocated)
    high = _number(found, "HighBit", bits - 1)
    if not 1 <= bits <= high + 1 <= allocated:
        return "images whose stored bits are not among their bits"
    slope, intercept = _factor(found, "RescaleSlope", 1.0), _factor(found, "RescaleIntercept", 0.0)
    dtype = None
    if syntax in _UNCOMPRESSED:
        if length == _UNDEFINED:
            # Pixels in items, which only compressed ones have: the item's own head would be taken for voxels.
            return _DAMAGED
        kind = "i" if _number(found, "PixelRepresentation", 0) == 1 else "u"
        dtype = np.dtype(f"{'>' if syntax == _BIG_ENDIAN else '<'}{kind}{allocated // 8}")
    return Slice(
        path=path,
        series=found["SeriesInstanceUID"][0],
        instance=(found["SOPInstanceUID"] or [path])[0],
        modality=(found["Modality"] or [""])[0],
        rows=rows,
        columns=columns,
        inverted=found["PhotometricInterpretation"] == ["MONOCHROME1"],
        complete=start > 0 and (dtype is None or min(size - start, length) >= rows * columns * allocated // 8),
        position=_vector(found["ImagePositionPatient"], 3),
        orientation=_vector(found["ImageOrientationPatient"], 6),
        pixel_spacing=_vector(found["PixelSpacing"], 2),
        start=start,
        size=size,
        dtype=dtype,
        bits=bits,
        high=high,
        slope=slope or 1.0,
        intercept=intercept,
    )


def _pixel_data(file: io.BufferedReader, order: str, implicit: bool) -> tuple[int, int]:
    """Byte at which the pixels begin and their length; (0, 0) where there are none."""
    head = file.read(8)
    if head[:4] != _PIXEL_DATA[order]:
        return 0, 0
    if implicit:
        length = int.from_bytes(head[4:], "little")
    else:
        # OB and OW, the only ones allowed, have a length of four bytes after two of nothing.
        length = int.from_bytes(file.read(4), "little" if order == "<" else "big")
    return file.tell(), length


def _words(tags: pydicom.Dataset, tag: int, order: str) -> list[str]:
    """The values of an element as texts; none where it is not there or empty."""
    if tag not in tags:
        return []
    value = tags.get_item(tag).value
    if not isinstance(value, bytes):
        # pydicom decodes a few elements while it reads.
        value = str(value).encode("ascii", "replace")
    elif tag in _BINARY:
        return [str(int.from_bytes(value[:2], "little" if order == "<" else "big"))] if len(value) >= 2 else []
    text = value.decode("latin-1").strip(" \0")
    return [word.strip(" \0") for word in text.split("\\")] if text else []


_BINARY = {
    _TAGS[name]
    for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
}


def _number(found, name: str, default: int | None = None) -> int:
    if not found[name] and default is not None:
        return default
    return int(found[name][0])


def _factor(found, name: str, default: float) -> float:
    if not found[name]:
        return default
    value = float(found[name][0])
    if not np.isfinite(value):
        raise ValueError("a slope or intercept that is not finite")
    return value


def _vector(values: list[str], count: int) -> np.ndarray:
    out = np.array([float(v) for v in values], dtype=np.float64)
    if out.shape != (count,) or not np.isfinite(out).all():
        raise ValueError("a geometry tag with the wrong number of values")
    return out
