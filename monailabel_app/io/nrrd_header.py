"""NRRD headers: read here line by line, so that ITK's own parser only sees the few fields that it is asked about.

The format lets a header name other files to take the voxels from. An attached header (.nrrd) that does is refused: sent
to a server it would show files of that machine. A detached one (.nhdr) may name one file beside it.
Source of the fields: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.stored import Stored

MAX_HEADER = 256 * 2**10
_MAGIC = re.compile(rb"NRRD000[1-5]\Z")
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_PACKINGS = {
    "raw": "raw", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2",
    "txt": "ascii", "text": "ascii", "ascii": "ascii", "hex": "hex",
}  # fmt: skip
_SAME = {
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "centers": "centerings",
    "axismins": "axis mins", "axismaxs": "axis maxs",
}  # fmt: skip
# What decides about the geometry, and is handed on to ITK when it looks as it should.
_NUMBERS = r"[-+0-9.eEnaifNAIF ,()\t]*"
_HANDED_ON = {
    "kinds": r"[-a-z0-9? \t]*",
    "centerings": r"[a-z? \t]*",
    "space": r"[-a-z0-9 ]*",
    "space dimension": r"[0-9]{1,2}",
    "spacings": _NUMBERS,
    "axis mins": _NUMBERS,
    "axis maxs": _NUMBERS,
    "space directions": r"[-+0-9.eEnaifoNAIF ,()\t]*",
    "space origin": _NUMBERS,
}
_LONGEST_LINE = 4096
_MAX_SKIPPED = 64 * 2**20


def read_nrrd_header(path: Path) -> tuple[Stored, bytes]:
    """Where the voxels of ``path`` lie, and a header of its geometry alone, without voxels, for ITK.

    Raises UnreadableVolume for what is no NRRD header, and where voxels are kept in a way that is not read here;
    InvalidVolume for voxels that are no numbers.
    """
    fields, end = _fields(path)
    sizes = _whole_numbers(fields, "sizes")
    dimension = _whole_numbers(fields, "dimension")
    if len(dimension) != 1 or not 1 <= dimension[0] <= 16 or len(sizes) != dimension[0]:
        raise _no_header(path, "as many sizes as dimensions", f"{len(sizes)} sizes")
    if min(sizes) < 1:
        raise InvalidVolume(
            f"expected sizes above zero, got {'x'.join(map(str, sizes))}: the image header is damaged, export it again"
        )
    kind = " ".join(fields.get("type", "").lower().split())
    if kind == "block":
        raise InvalidVolume("expected one number per voxel, got blocks of bytes: send the scalar image")
    if kind not in _DTYPES:
        raise _no_header(path, "a type of numbers", f"type {kind[:24]!r}")
    dtype = np.dtype(_DTYPES[kind])
    packing = _PACKINGS.get(fields.get("encoding", "").strip().lower())
    if packing is None:
        raise _no_header(path, f"an encoding out of {', '.join(_PACKINGS)}", repr(fields.get("encoding", "")[:24]))
    if dtype.itemsize > 1 and packing != "ascii":
        dtype = dtype.newbyteorder(_byte_order(path, fields))
    stored = _placed(path, end, fields, dtype, math.prod(sizes), packing)
    return stored, _for_itk(path, fields, sizes)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields by their names, and the byte after the header."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    if not _MAGIC.match(head.split(b"\n", 1)[0].rstrip(b"\r")):
        raise _no_header(path, "NRRD0001 to NRRD0005 in its first line", "something else")
    fields: dict[str, str] = {}
    start = head.find(b"\n") + 1
    while start < len(head):
        end = head.find(b"\n", start)
        whole = end >= 0
        line = head[start : end if whole else len(head)].rstrip(b"\r")
        start = end + 1 if whole else len(head)
        if not line:
            return fields, start
        text = line.decode("latin-1")
        if text.startswith("#") or ":=" in text.split(": ", 1)[0]:
            continue
        name, colon, value = text.partition(": ")
        name = name.strip().lower()
        if not colon:
            raise _no_header(path, "lines of the form 'field: value'", "another")
        fields[_SAME.get(name, name)] = value.strip()
    if len(head) == MAX_HEADER:
        raise _no_header(path, f"a header of at most {MAX_HEADER} bytes", "a longer one")
    # A detached header may end with the file.
    return fields, len(head)


def _whole_numbers(fields: dict[str, str], name: str) -> list[int]:
    words = fields.get(name, "").split()[:17]
    if not words or not all(re.fullmatch(r"[-+]?[0-9]{1,18}", word, re.ASCII) for word in words):
        raise UnreadableVolume(
            f"expected whole numbers as {name} in the NRRD header, got {fields.get(name, 'none')[:40]!r}: the header "
            "is damaged, export the scan again"
        )
    return [int(word) for word in words]


def _byte_order(path: Path, fields: dict[str, str]) -> str:
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        raise _no_header(path, "endian little or big", repr(order[:24]))
    return "<" if order == "little" else ">"


def _placed(path: Path, end: int, fields: dict[str, str], dtype: np.dtype, count: int, packing: str) -> Stored:
    file, start = path, end
    if "data file" in fields:
        file, start = _beside(path, fields["data file"]), 0
    elif path.suffix.lower() == ".nhdr":
        raise _no_header(path, "a data file in a detached header", "none")
    skipped = {
        name: _whole_numbers(fields, name)[0] if name in fields else 0 for name in ("line skip", "byte skip")
    }
    lines, skip = skipped["line skip"], skipped["byte skip"]
    if not 0 <= lines <= 10_000 or not -1 <= skip <= _MAX_SKIPPED or (skip < 0 and packing != "raw"):
        raise _no_header(path, "line skip and byte skip that lead to the voxels", f"{lines} and {skip}")
    if lines:
        start = _after_lines(file, start, lines)
    if skip < 0:
        start, skip = max(start, file.stat().st_size - count * dtype.itemsize), 0
    if packing == "raw":
        start, skip = start + skip, 0
    return Stored(file, dtype, count, start=start, skip=skip, packing=packing)


def _beside(path: Path, name: str) -> Path:
    if path.suffix.lower() != ".nhdr":
        raise UnreadableVolume(
            "expected the voxels in the .nrrd file itself, got a header that names another file: send an attached "
            ".nrrd (3D Slicer and ITK write one)"
        )
    return beside(path, name)


def beside(path: Path, name: str) -> Path:
    """The file that a detached header names, which has to lie in its folder. Raises UnreadableVolume."""
    plain = re.fullmatch(r"[^/\\%\x00-\x1f]{1,255}", name) and name not in (".", "..") and name.split()[0] != "LIST"
    if not plain or not (path.parent / name).is_file() or (path.parent / name).is_symlink():
        raise UnreadableVolume(
            "expected one data file that lies beside its header, named without a folder; got another place, a list, or "
            "a file that is not there: send one file that holds header and voxels (.nii.gz, .nrrd)"
        )
    return path.parent / name


def _after_lines(path: Path, start: int, lines: int) -> int:
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(lines):
            file.readline(_LONGEST_LINE)
        return file.tell()


def _for_itk(path: Path, fields: dict[str, str], sizes: list[int]) -> bytes:
    lines = ["NRRD0005", "type: unsigned char", f"dimension: {len(sizes)}"]
    lines += ["space: " + fields["space"].lower()] if "space" in fields else []
    lines += [f"sizes: {' '.join(map(str, sizes))}", "encoding: raw", f"endian: {sys.byteorder}"]
    for name, form in _HANDED_ON.items():
        if name not in fields:
            continue
        value = fields[name].lower() if name in ("kinds", "centerings", "space") else fields[name]
        if len(value) > _LONGEST_LINE or not re.fullmatch(form, value, re.ASCII):
            raise _no_header(path, f"a {name} field as NRRD defines it", "another")
        if name != "space":
            lines.append(f"{name}: {value}")
    if "space dimension" in fields and "space" not in fields:
        # It has to come before the vectors that have that many numbers.
        lines.remove(f"space dimension: {fields['space dimension']}")
        lines.insert(3, f"space dimension: {fields['space dimension']}")
    return ("\n".join(lines) + "\n\n").encode("ascii")


def _no_header(path: Path, expected: str, got: str) -> UnreadableVolume:
    suffix = path.suffix.lower()
    return UnreadableVolume(
        f"expected a {suffix} image, got a file without a valid {suffix} header (expected {expected}, got {got}): "
        "export it again"
    )
