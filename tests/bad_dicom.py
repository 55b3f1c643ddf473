"""DICOM series with something wrong: each makes the files of a folder, by name."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import RLELossless

from monailabel_app.types import Volume
from tests.dicom_factory import write_series

Files = dict[str, bytes]
_AFFINE = np.array([[-1.1, 0, 0, 10], [0, -0.9, 0, 12], [0, 0, 2.5, -20], [0, 0, 0, 1.0]])


@cache
def _volume() -> Volume:
    data = np.random.default_rng(3).integers(0, 900, (1, 20, 24, 18)).astype(np.float32)
    return Volume(data, _AFFINE)


def series(edit: Callable | None = None, **options) -> Files:
    """18 slices of 20x24; ``edit`` as in ``write_series``."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_series(Path(folder), _volume(), edit=edit, **options).files
        return {f"{number:03d}.dcm": path.read_bytes() for number, path in enumerate(files)}


def _set(index: int | None = None, **tags) -> Callable[[int, pydicom.Dataset], None]:
    """Sets elements of one slice, or of all; None removes."""

    def edit(k, ds):
        if index is None or k == index:
            for name, value in tags.items():
                if value is None:
                    delattr(ds, name)
                else:
                    # As bytes: what no program would write must not be refused by the one that writes it here.
                    setattr(ds, name, value)

    return edit


def _raw(name: str, text: bytes) -> Files:
    """The text of an element replaced in every file by another of the same length (padded with spaces)."""
    out = {}
    for key, content in series().items():
        element = pydicom.dcmread(io.BytesIO(content))[name]
        value = element.value
        old = "\\".join(map(str, value)) if isinstance(value, (list, pydicom.multival.MultiValue)) else str(value)
        old = old.encode() + b" " * (len(old) % 2)
        vr = element.VR.encode()
        place = content.index(struct.pack("<HH", element.tag.group, element.tag.elem) + vr)
        head = content[: place + 6] + struct.pack("<H", len(text) + len(text) % 2)
        out[key] = head + text + b" " * (len(text) % 2) + content[place + 8 + len(old) :]
    return out


def _number(name: str, value: int) -> Files:
    """A 16-bit number replaced in every file."""
    out = {}
    for key, content in series().items():
        tag = pydicom.tag.Tag(name)
        place = content.index(struct.pack("<HH", tag.group, tag.elem) + b"US") + 8
        out[key] = content[:place] + struct.pack("<H", value) + content[place + 2 :]
    return out


def _without(*numbers: int) -> Files:
    return {name: content for k, (name, content) in enumerate(series().items()) if k not in numbers}


def _move(k: int, along: float, across: float = 0.0, every: bool = False) -> Callable:
    def edit(n, ds):
        if n == k or every:
            x, y, z = (float(v) for v in ds.ImagePositionPatient)
            step = n if every else 1
            ds.ImagePositionPatient = [x, round(y + across * step, 4), round(z + along * step, 4)]

    return edit


def _cut(part: float, only: int | None = None) -> Files:
    return {
        name: content[: int(len(content) * part)] if only is None or k == only else content
        for k, (name, content) in enumerate(series().items())
    }


def _flipped(seed: int, first: int, last: int | None, bits: int) -> Files:
    rng, out = np.random.default_rng(seed), {}
    for name, content in series().items():
        content = bytearray(content)
        for _ in range(bits):
            content[int(rng.integers(first, last or len(content)))] ^= 1 << int(rng.integers(8))
        out[name] = bytes(content)
    return out


def _syntax(uid: str) -> Files:
    """The transfer syntax replaced by another; the pixels stay what they are."""
    return {name: _with_syntax(content, uid) for name, content in series().items()}


def _with_syntax(content: bytes, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    at = content.index(b"\x02\x00\x10\x00UI") + 6
    (length,) = struct.unpack("<H", content[at : at + 2])
    content = content[:at] + struct.pack("<H", len(value)) + value + content[at + 2 + length :]
    at = content.index(b"\x02\x00\x00\x00UL") + 8
    group = struct.unpack("<I", content[at : at + 4])[0] + len(value) - length
    return content[:at] + struct.pack("<I", group) + content[at + 4 :]


def _encapsulated(uid: str, frame: bytes) -> Files:
    def edit(_, ds):
        ds.file_meta.TransferSyntaxUID = uid
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    return series(edit)


def _rle(damage: Callable[[bytes], bytes] | None = None, **tags) -> Files:
    def edit(k, ds):
        ds.compress(RLELossless, generate_instance_uid=False)
        _set(**tags)(k, ds)

    files = series(edit)
    return files if damage is None else {name: damage(content) for name, content in files.items()}


def _deflated(megabytes: int) -> Files:
    out = {}
    for name, content in list(series().items())[:3]:
        place = content.index(struct.pack("<HH", 8, 5))
        head = content[:place]
        engine = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = engine.compress(content[place:]) + b"".join(engine.compress(bytes(2**20)) for _ in range(megabytes))
        out[name] = _with_syntax(head + body + engine.flush(), "1.2.840.10008.1.2.1.99")
    return out


def _nested(levels: int, defined: bool = False) -> Files:
    """Every slice begins with sequences within each other (0008,1140), of undefined length."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    open_, close = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item, (
        struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    block = open_ * levels + (b"" if defined else close * levels)
    return _with_block(block)


def _with_block(block: bytes) -> Files:
    out = {}
    for name, content in series().items():
        place = content.index(struct.pack("<HH", 0x0010, 0x0010))
        out[name] = content[:place] + block + content[place:]
    return out


def _mixed() -> Files:
    return {**series(), **{f"b{name}": content for name, content in series(series=2).items()}}


def _twice() -> Files:
    return {**series(), **{f"copy{name}": content for name, content in series().items()}}


def _other_encoding(implicit: bool, little: bool) -> Files:
    def edit(_, ds):
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.2"
        ds.is_implicit_VR, ds.is_little_endian = implicit, little

    return series(edit)


def _no_preamble() -> Files:
    return {name: content[132:] for name, content in series().items()}


def _dicomdir() -> Files:
    content = next(iter(series().values()))
    place = content.index(struct.pack("<HH", 0x0028, 0x0002))
    return {"DICOMDIR": content[:place]}


_J2K = b"\xff\x4f\xff\x51\x00\x2f" + bytes(45)
_HUGE_J2K = b"\xff\x4f\xff\x51" + struct.pack(
    ">HHIIIIIIIIHBBB", 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1, 15, 1, 1
)

# title -> (what makes the files, refused | taken | either)
DICOM_CASES: dict[str, tuple[Callable[[], Files], str]] = {
    "a slice missing": (partial(_without, 7), "refused"),
    "three slices missing": (partial(_without, 3, 4, 11), "refused"),
    "one slice only": (partial(_without, *range(1, 18)), "either"),
    "two slices only": (partial(_without, *range(2, 18)), "either"),
    "every file twice": (_twice, "taken"),
    "two series": (_mixed, "taken"),
    "gantry tilted": (partial(series, _move(0, 0, 0.4, every=True)), "refused"),
    "variable distances": (partial(series, _move(9, 0.9)), "refused"),
    "all at one place": (partial(series, _set(ImagePositionPatient=[0, 0, 0])), "refused"),
    "a slice 1 km away": (partial(series, _move(9, 1e6)), "refused"),
    "multi-frame": (partial(series, _set(NumberOfFrames=4)), "refused"),
    "a million frames": (partial(series, _set(NumberOfFrames=10**6)), "refused"),
    "no position": (partial(series, _set(ImagePositionPatient=None)), "refused"),
    "no orientation": (partial(series, _set(ImageOrientationPatient=None)), "refused"),
    "no pixel spacing": (partial(series, _set(PixelSpacing=None)), "refused"),
    "no series": (partial(series, _set(SeriesInstanceUID=None)), "refused"),
    "no rows": (partial(series, _set(Rows=None)), "refused"),
    "no pixels": (partial(series, _set(PixelData=None)), "refused"),
    "pixel spacing 0": (partial(series, _set(PixelSpacing=[0, 0])), "refused"),
    "pixel spacing negative": (partial(series, _set(PixelSpacing=[-1, -1])), "refused"),
    "pixel spacing 1e9": (partial(series, _set(PixelSpacing=["1e9", "1e9"])), "refused"),
    "pixel spacing 1e-30": (partial(series, _set(PixelSpacing=["1e-30", "1e-30"])), "refused"),
    "pixel spacing of text": (partial(_raw, "PixelSpacing", b"wide\\narrow"), "refused"),
    "pixel spacing of one number": (partial(_raw, "PixelSpacing", b"1.0"), "refused"),
    "pixel spacing NaN": (partial(_raw, "PixelSpacing", b"nan\\nan"), "refused"),
    "position inf": (partial(_raw, "ImagePositionPatient", b"inf\\0\\0"), "refused"),
    "position of 20000 digits": (partial(_raw, "ImagePositionPatient", b"9" * 20000 + b"\\0\\0"), "refused"),
    "orientation of zeros": (partial(_raw, "ImageOrientationPatient", b"0\\0\\0\\0\\0\\0"), "refused"),
    "orientation not at right angles": (partial(_raw, "ImageOrientationPatient", b"1\\0\\0\\1\\0\\0"), "refused"),
    "one slice turned": (partial(series, _set(5, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), "refused"),
    "0 rows": (partial(_number, "Rows", 0), "refused"),
    "65535 rows": (partial(_number, "Rows", 65535), "refused"),
    "65535 columns": (partial(_number, "Columns", 65535), "refused"),
    "bits allocated 12": (partial(_number, "BitsAllocated", 12), "refused"),
    "bits allocated 0": (partial(_number, "BitsAllocated", 0), "refused"),
    "bits stored 99": (partial(_number, "BitsStored", 99), "refused"),
    "bits stored 12": (partial(_number, "BitsStored", 12), "either"),
    "high bit 200": (partial(_number, "HighBit", 200), "refused"),
    "3 samples per pixel": (partial(_number, "SamplesPerPixel", 3), "refused"),
    "colour palette": (partial(series, _set(PhotometricInterpretation="PALETTE COLOR")), "refused"),
    "inverted grey values": (partial(series, _set(PhotometricInterpretation="MONOCHROME1")), "taken"),
    "slope 0": (partial(_raw, "RescaleSlope", b"0"), "taken"),
    "slope 1e300": (partial(_raw, "RescaleSlope", b"1e300"), "refused"),
    "slope inf": (partial(_raw, "RescaleSlope", b"inf"), "refused"),
    "intercept NaN": (partial(_raw, "RescaleIntercept", b"nan"), "refused"),
    "computed tomography": (partial(series, _set(Modality="CT")), "taken"),
    "character set that there is not": (partial(_raw, "SpecificCharacterSet", b"ISO_IR 9999"), "taken"),
    "character set of 200 parts": (
        partial(_raw, "SpecificCharacterSet", b"\\".join([b"ISO 2022 IR 87"] * 200)), "taken",
    ),
    "name in another character set": (partial(_raw, "PatientName", "Müller^頭".encode("utf-16-le")), "taken"),
    "name with escapes": (partial(_raw, "PatientName", b"\x1b$B\x1b(J\x1b\x1b\xff\xfe"), "taken"),
    "identifiers that are none": (partial(_raw, "SeriesInstanceUID", b"'; DROP TABLE scans; --"), "taken"),
    "implicit": (partial(_other_encoding, True, True), "taken"),
    "big endian": (partial(_other_encoding, False, False), "either"),
    "without preamble": (_no_preamble, "refused"),
    "DICOMDIR alone": (_dicomdir, "refused"),
    "RLE": (_rle, "taken"),
    "RLE cut": (partial(_rle, lambda c: c[:-300]), "either"),
    "RLE of 65535 rows": (lambda: _rle(Rows=65535, Columns=65535), "refused"),
    "RLE, other size": (lambda: _rle(Rows=2000, Columns=2000), "refused"),
    # GDCM reads the pixels that are there, and they are the right ones.
    "said to be JPEG": (partial(_syntax, "1.2.840.10008.1.2.4.50"), "either"),
    "JPEG of nothing": (partial(_encapsulated, "1.2.840.10008.1.2.4.50", b"\xff\xd8\xff\xd9"), "refused"),
    "lossless JPEG of zeros": (partial(_encapsulated, "1.2.840.10008.1.2.4.70", b"\xff\xd8" + bytes(98)), "refused"),
    "JPEG-LS of noise": (
        partial(_encapsulated, "1.2.840.10008.1.2.4.80", b"\xff\xd8\xff\xf7" + b"\x55" * 96), "refused",
    ),
    "JPEG 2000 broken": (partial(_encapsulated, "1.2.840.10008.1.2.4.90", _J2K), "refused"),
    "JPEG 2000 of 60000 x 60000": (partial(_encapsulated, "1.2.840.10008.1.2.4.90", _HUGE_J2K), "refused"),
    "MPEG": (partial(_encapsulated, "1.2.840.10008.1.2.4.100", b"\0\0\1\xb3" + bytes(96)), "refused"),
    "private transfer syntax": (partial(_syntax, "1.2.3.4.5.6.7"), "refused"),
    "no transfer syntax": (partial(_syntax, ""), "either"),
    "deflated bomb of 100 MB a file": (partial(_deflated, 100), "refused"),
    "100 sequences within each other": (partial(_nested, 100), "either"),
    "1000 sequences within each other": (partial(_nested, 1000), "either"),
    "100,000 sequences never closed": (partial(_nested, 100_000, True), "refused"),
    "an element of 4 GB": (
        partial(_with_block, struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, 0xFFFFFFF0)), "refused",
    ),
    "an element of odd length": (
        partial(_with_block, struct.pack("<HH2sH", 9, 0x1010, b"LO", 3) + b"abc"), "either",
    ),
    "unknown kinds of elements": (partial(_with_block, struct.pack("<HH2sH", 9, 0x1010, b"ZZ", 2) + b"ab"), "either"),
    "100,000 elements": (partial(_with_block, struct.pack("<HH2sH", 9, 0x1010, b"SH", 2) * 1 + b"ab" + b"".join(
        struct.pack("<HH2sH", 9, 0x1011 + n % 60000, b"SH", 2) + b"ab" for n in range(100_000))), "either"),
    "undefined length of an unknown element": (
        partial(_with_block, struct.pack("<HH2sHI", 9, 0x1010, b"UN", 0, 0xFFFFFFFF)), "refused",
    ),
    "text files": (lambda: {"a.dcm": b"no DICOM", "b.txt": b"neither"}, "refused"),
    "no file": (dict, "refused"),
    "names not ASCII": (lambda: {f"Müller 頭 {n}": c for n, c in series().items()}, "taken"),
    "in folders": (lambda: {f"a/b/{n}": c for n, c in series().items()}, "taken"),
    "another modality's object": (partial(_raw, "SOPClassUID", b"1.2.840.10008.5.1.4.1.1.104.1"), "either"),
    **{f"cut at {part:g}": (partial(_cut, part), "refused") for part in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)},
    "one file cut": (partial(_cut, 0.7, 4), "refused"),
    **{f"header bits flipped, seed {s}": (partial(_flipped, s, 132, 1200, 3), "either") for s in range(8)},
    "pixel bits flipped": (partial(_flipped, 99, -900, None, 9), "either"),
}  # fmt: skip
