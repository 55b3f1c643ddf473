"""MetaImage headers (.mha, .mhd), read as those of NRRD are: ITK sees only the fields of the geometry.

Source of the fields: "MetaIO/Documentation", https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.nrrd_header import beside
from monailabel_app.io.stored import Stored

MAX_HEADER = 64 * 2**10
_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
# 4 bytes in the format's table, 8 on most machines that wrote it: no two programs agree.
_UNCLEAR = ("MET_LONG", "MET_ULONG")
_SAME = {
    "Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip
_NUMBERS = r"[-+0-9.eEnaifNAIF ]*"
_HANDED_ON = {
    "TransformMatrix": _NUMBERS,
    "Offset": _NUMBERS,
    "CenterOfRotation": _NUMBERS,
    "AnatomicalOrientation": r"[A-Z?]*",
    "ElementSpacing": _NUMBERS,
    "ElementSize": _NUMBERS,
    "DistanceUnits": r"[a-z?]*",
}
_VECTORS = ("Offset", "CenterOfRotation", "ElementSpacing", "ElementSize")


def read_metaimage_header(path: Path) -> tuple[Stored, bytes]:
    """Where the voxels of ``path`` lie, and a header of its geometry alone for ITK. Errors as ``read_nrrd_header``."""
    fields, end = _fields(path)
    sizes = _whole_numbers(path, fields, "DimSize")
    if _whole_numbers(path, fields, "NDims") != [len(sizes)] or not 1 <= len(sizes) <= 10:
        raise _no_header(path, "as many sizes as dimensions", f"{len(sizes)} sizes")
    if min(sizes) < 1:
        raise InvalidVolume(
            f"expected sizes above zero, got {'x'.join(map(str, sizes))}: the image header is damaged, export it again"
        )
    channels = _whole_numbers(path, fields, "ElementNumberOfChannels", "1")[0]
    kind = fields.get("ElementType", "")
    if channels != 1 or kind.endswith("_ARRAY"):
        raise InvalidVolume(
            f"expected one value per voxel, got {channels} components (colour, vector or complex): send the scalar "
            "image"
        )
    if kind not in _DTYPES:
        got = f"{kind}, whose length is not the same everywhere" if kind in _UNCLEAR else repr(kind[:24])
        raise _no_header(path, f"an ElementType out of {', '.join(_DTYPES)}", got)
    dtype = np.dtype(_DTYPES[kind]).newbyteorder(">" if _is_true(fields, "BinaryDataByteOrderMSB") else "<")
    count, start, file = math.prod(sizes), end, path
    name = fields["ElementDataFile"]
    if name.upper() != "LOCAL":
        if path.suffix.lower() != ".mhd":
            raise UnreadableVolume(
                "expected the voxels in the .mha file itself (ElementDataFile = LOCAL), got a header that names "
                "another file: send a file that holds header and voxels"
            )
        file, start = beside(path, name), 0
    packing = "raw" if _is_true(fields, "BinaryData", "True") else "ascii"
    if _is_true(fields, "CompressedData"):
        packing = "deflate"
    header = _whole_numbers(path, fields, "HeaderSize", "0")[0]
    if file != path and header:
        if packing != "raw" or not -1 <= header <= MAX_HEADER:
            raise _no_header(path, "a HeaderSize that leads to the voxels", str(header))
        start = header if header > 0 else max(0, file.stat().st_size - count * dtype.itemsize)
    return Stored(file, dtype, count, start=start, packing=packing), _for_itk(path, fields, sizes)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    fields: dict[str, str] = {}
    start = 0
    while start < len(head):
        end = head.find(b"\n", start)
        line = head[start : end if end >= 0 else len(head)]
        start = end + 1 if end >= 0 else len(head)
        name, equals, value = line.decode("latin-1").partition("=")
        name = name.strip()
        if not line.strip():
            continue
        if not equals or not re.fullmatch(r"[ -~]{1,80}", name):
            break
        fields[_SAME.get(name, name)] = value.strip()
        if name == "ElementDataFile":
            return fields, start
    raise _no_header(path, "lines of the form 'Field = value' that end with ElementDataFile", "others")


def _whole_numbers(path: Path, fields: dict[str, str], name: str, default: str = "") -> list[int]:
    words = fields.get(name, default).split()[:11]
    if not words or not all(re.fullmatch(r"[-+]?[0-9]{1,18}", word, re.ASCII) for word in words):
        raise _no_header(path, f"whole numbers as {name}", repr(fields.get(name, "none")[:40]))
    return [int(word) for word in words]


def _is_true(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default)[:1] in ("T", "t", "1")


def _for_itk(path: Path, fields: dict[str, str], sizes: list[int]) -> bytes:
    lines = ["ObjectType = Image", f"NDims = {len(sizes)}", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines.append("CompressedData = False")
    for name, form in _HANDED_ON.items():
        if name not in fields:
            continue
        value = fields[name]
        words = {"TransformMatrix": len(sizes) ** 2, **dict.fromkeys(_VECTORS, len(sizes))}.get(name)
        if not re.fullmatch(form, value, re.ASCII) or (words is not None and len(value.split()) != words):
            raise _no_header(path, f"a {name} field as MetaImage defines it", "another")
        lines.append(f"{name} = {value}")
    lines += [f"DimSize = {' '.join(map(str, sizes))}", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL"]
    return ("\n".join(lines) + "\n").encode("ascii")


def _no_header(path: Path, expected: str, got: str) -> UnreadableVolume:
    suffix = path.suffix.lower()
    return UnreadableVolume(
        f"expected a {suffix} image, got a file without a valid {suffix} header (expected {expected}, got {got}): "
        "export it again"
    )
