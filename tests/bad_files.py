"""Bad and odd image files, made on the spot: what a damaged disk, an odd program or somebody with bad intent sends.

``CASES`` names them; ``Case.make(folder)`` writes one and returns its files. Everything is seeded and small; nothing
here needs more than a few hundred thousand bytes on disk, whatever its header claims.
"""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, PngImagePlugin

from tests.bad_dicom import DICOM_CASES

CUBE = np.random.default_rng(0).integers(1, 900, (20, 21, 22)).astype(np.int16)


@dataclass(frozen=True)
class Case:
    """kind: its group in tables. name: of the file that is sent. content: its bytes.

    way: store (PUT /datastore/image, then an analysis if it was taken), infer (with the analysis) or session.
    outcome: refused, taken (read; whether there is a head in it is another question) or either.
    words: what the reason has to contain.
    """

    kind: str
    title: str
    name: str
    content: Callable[[], bytes]
    outcome: str = "refused"
    way: str = "store"
    words: str = "expected"

    def make(self, folder: Path) -> Path:
        """The file, written into ``folder``; an archive is unpacked by the one who asks."""
        path = folder / self.name
        path.write_bytes(self.content())
        return path


def nifti1(data=CUBE, affine=None, kind=nib.Nifti1Image, endian="<", tail=b"", **fields) -> bytes:
    """A .nii; ``fields`` are set in its header without any check."""
    header = kind.header_class(endianness=endian)
    header.set_data_dtype(data.dtype)
    image = kind(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine, header)
    stream = io.BytesIO()
    image.to_file_map({"image": nib.FileHolder(fileobj=stream), "header": nib.FileHolder(fileobj=stream)})
    content = bytearray(stream.getvalue())
    size = kind.header_class.template_dtype.itemsize
    header = kind.header_class(bytes(content[:size]), endianness=endian, check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    return bytes(content) + tail


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def cut(make: Callable[[], bytes], part: float) -> bytes:
    content = make()
    return content[: int(len(content) * part)]


def flipped(make: Callable[[], bytes], seed: int, first: int, last: int | None, bits: int = 1) -> bytes:
    """With ``bits`` bits turned over among the bytes first to last."""
    rng, content = np.random.default_rng(seed), bytearray(make())
    for _ in range(bits):
        content[int(rng.integers(first, last or len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(content)


def bomb(head: bytes, megabytes: int, level: int = 9) -> bytes:
    """gzip of ``head`` and then of zeros: a megabyte packs into a thousand bytes."""
    engine, zeros = zlib.compressobj(level, zlib.DEFLATED, 31), bytes(2**20)
    return engine.compress(head) + b"".join(engine.compress(zeros) for _ in range(megabytes)) + engine.flush()


def nrrd(
    fields: str = "", data: bytes | None = None, *, first="NRRD0004", sizes="20 21 22", type="short",
    encoding="raw", endian="little", dimension="3",
) -> bytes:  # fmt: skip
    body = CUBE.tobytes(order="F") if data is None else data
    packed = {"gzip": gz, "bzip2": bz2.compress, "hex": lambda b: b.hex().encode()}.get(encoding, bytes)(body)
    head = f"{first}\ntype: {type}\ndimension: {dimension}\nsizes: {sizes}\nencoding: {encoding}\nendian: {endian}\n"
    return (head + fields + ("\n" if fields and not fields.endswith("\n") else "") + "\n").encode("latin-1") + packed


def mha(fields: str = "", data: bytes | None = None, *, dims="20 21 22", kind="MET_SHORT", file="LOCAL", n="3"):
    head = f"ObjectType = Image\nNDims = {n}\n{fields}DimSize = {dims}\nElementType = {kind}\n"
    head += f"ElementDataFile = {file}\n"
    return head.encode() + (CUBE.tobytes(order="F") if data is None else data)


def picture(size=(64, 64), mode="L", info: dict | None = None, **options) -> bytes:
    shape = (size[1], size[0]) + ((len(mode),) if mode in ("RGB", "RGBA", "LA") else ())
    pixels = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    stream, text = io.BytesIO(), PngImagePlugin.PngInfo()
    for key, value in (info or {}).items():
        text.add_text(key, value, zip=True)
    Image.fromarray(pixels, mode).save(stream, "PNG", pnginfo=text, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + body
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(400)


def _nifti_cases() -> list[Case]:
    cases: list[Case] = []

    def add(kind, title, content, outcome="refused", name="scan.nii", **more):
        cases.append(Case(kind, title, name, content, outcome, **more))

    for part in (0.0, 0.001, 0.01, 0.018, 0.0185, 0.02, 0.3, 0.7, 0.99, 0.9999):
        add("truncated", f"nii cut at {part:g}", partial(cut, nifti1, part))
    for part in (0.0005, 0.002, 0.01, 0.1, 0.5, 0.9, 0.999, 0.9999):
        add("truncated", f"nii.gz cut at {part:g}", partial(cut, lambda: gz(nifti1()), part), name="scan.nii.gz")
    for seed in range(24):
        add("bits flipped", f"nii header, seed {seed}", partial(flipped, nifti1, seed, 0, 348, 3), "either")
    for seed in range(10):
        add("bits flipped", f"nii.gz stream, seed {seed}", partial(flipped, lambda: gz(nifti1()), seed, 10, None, 2),
            "either", name="scan.nii.gz")  # fmt: skip
    for seed in range(4):
        add("bits flipped", f"nii voxels, seed {seed}", partial(flipped, nifti1, seed, 400, None, 50), "taken")
    for title, fields in {
        "sizeof_hdr 0": {"sizeof_hdr": 0}, "sizeof_hdr 540 in NIfTI-1": {"sizeof_hdr": 540},
        "sizeof_hdr -1": {"sizeof_hdr": -1}, "no magic": {"magic": b""}, "magic of a pair": {"magic": b"ni1"},
        "magic of NIfTI-2": {"magic": b"n+2"},
        "dim[0] 0": {"dim": [0, 20, 21, 22, 1, 1, 1, 1]}, "dim[0] 8": {"dim": [8, 20, 21, 22, 1, 1, 1, 1]},
        "dim[0] -3": {"dim": [-3, 20, 21, 22, 1, 1, 1, 1]}, "dim[0] 32767": {"dim": [32767, 20, 21, 22, 1, 1, 1, 1]},
        "a size of -20": {"dim": [3, -20, 21, 22, 1, 1, 1, 1]}, "a size of 0": {"dim": [3, 20, 0, 22, 1, 1, 1, 1]},
        "all sizes 32767": {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        "seven sizes 32767": {"dim": [7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]},
        "more voxels than bytes": {"dim": [3, 200, 210, 220, 1, 1, 1, 1]},
        "vox_offset -1": {"vox_offset": -1}, "vox_offset 10": {"vox_offset": 10},
        "vox_offset NaN": {"vox_offset": np.nan}, "vox_offset inf": {"vox_offset": np.inf},
        "vox_offset beyond the end": {"vox_offset": 1e9}, "vox_offset 1e38": {"vox_offset": 1e38},
        "datatype 0": {"datatype": 0}, "datatype 1 (binary)": {"datatype": 1, "bitpix": 1},
        "datatype 1234": {"datatype": 1234}, "datatype complex": {"datatype": 32, "bitpix": 64},
        "datatype RGB": {"datatype": 128, "bitpix": 24}, "datatype RGBA": {"datatype": 2304, "bitpix": 32},
        "datatype float128 of short voxels": {"datatype": 1536, "bitpix": 128},
        "pixdim 0": {"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "pixdim negative": {"pixdim": [1, -1, 1, 1, 0, 0, 0, 0]},
        "pixdim NaN": {"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]},
        "pixdim inf": {"pixdim": [1, 1, np.inf, 1, 0, 0, 0, 0]},
        "pixdim 1e30": {"pixdim": [1, 1e30, 1e30, 1e30, 0, 0, 0, 0], "sform_code": 0, "qform_code": 1},
        "pixdim 1e-40": {"pixdim": [1, 1e-40, 1, 1, 0, 0, 0, 0], "sform_code": 0, "qform_code": 1},
        "quaternion NaN": {"quatern_b": np.nan, "sform_code": 0, "qform_code": 1},
        "quaternion of 5": {"quatern_b": 5, "quatern_c": 5, "sform_code": 0, "qform_code": 1},
        "offset inf": {"qoffset_x": np.inf, "sform_code": 0, "qform_code": 1},
        "offset NaN": {"srow_x": [2, 0, 0, np.nan], "qform_code": 0, "sform_code": 1},
        "affine NaN": {"srow_x": [np.nan] * 4, "qform_code": 0, "sform_code": 1},
        "affine inf": {"srow_x": [np.inf, 0, 0, 0], "qform_code": 0, "sform_code": 1},
        "affine singular": {"srow_x": [0, 0, 0, 0], "qform_code": 0, "sform_code": 1},
        "affine of rank 2": {"srow_x": [0, 2, 0, 0], "qform_code": 0, "sform_code": 1},
        "affine of 1e-40": {"srow_x": [1e-40, 0, 0, 0], "qform_code": 0, "sform_code": 1},
        "affine of 1e38": {"srow_x": [1e38, 0, 0, 0], "qform_code": 0, "sform_code": 1},
        "slope 1e38": {"scl_slope": 1e38, "scl_inter": 0}, "slope 1e-44": {"scl_slope": 1e-44, "scl_inter": 0},
        "slope 1 intercept NaN": {"scl_slope": 1, "scl_inter": np.nan},
        "intercept 3e38": {"scl_slope": 1, "scl_inter": 3e38},
    }.items():  # fmt: skip
        add("header", f"nii, {title}", partial(nifti1, **fields), "either" if title == "quaternion of 5" else "refused")
        if "vox_offset" in title or "32767" in title or "more voxels" in title:
            add("header", f"nii.gz, {title}", lambda fields=fields: gz(nifti1(**fields)), name="scan.nii.gz")
    for title, fields in {
        "slope 0": {"scl_slope": 0}, "slope NaN": {"scl_slope": np.nan}, "slope inf": {"scl_slope": np.inf},
        "vox_offset 0": {"vox_offset": 0}, "no qform, no sform": {"qform_code": 0, "sform_code": 0},
        "qform and sform contradict": {"qform_code": 1, "sform_code": 1,
        "srow_x": [0, 2, 0, 5], "srow_y": [2, 0, 0, 1]},
        "sheared": {"qform_code": 0, "sform_code": 1, "srow_x": [2, 0.6, 0, 0]},
        "form codes 99": {"qform_code": 99, "sform_code": -7}, "unit codes 255": {"xyzt_units": 255},
        "bitpix wrong": {"bitpix": 77}, "intent of a vector": {"intent_code": 1007}, "descrip not ASCII":
        {"descrip": b"M\xfcller^J\xf6rg \xff\xfe"}, "aux_file ../../etc/passwd": {"aux_file": b"../../etc/passwd"},
    }.items():  # fmt: skip
        add("odd header", f"nii, {title}", partial(nifti1, **fields), "either" if "99" in title else "taken")
    for code in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        data = np.clip(CUBE, 1, 120).astype(code)
        add("type", f"nii of {np.dtype(code).name}", partial(nifti1, data), "taken")
    for endian in "<>":
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            content = partial(nifti1, CUBE.astype(f"{endian}i2"), kind=kind, endian=endian)
            add("type", f"{kind.__name__} {endian}", content, "taken")
    add("type", "header of one byte order, voxels of the other", lambda: nifti1(CUBE.astype(">i2")), "taken")
    for title, data in {
        "complex64": CUBE.astype(np.complex64), "complex128": CUBE.astype(np.complex128),
        "RGB": np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        "RGBA": np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
        "4-D": np.stack([CUBE] * 3, -1), "5-D": np.stack([CUBE] * 3, -1)[:, :, :, None], "2-D": CUBE[:, :, 0],
        "1-D": CUBE[:, 0, 0], "1 voxel": CUBE[:1, :1, :1], "1 line": CUBE[:, :1, :1], "12 x 12 x 22": CUBE[:12, :12],
        "all NaN": np.full(CUBE.shape, np.nan, np.float32), "all zero": np.zeros_like(CUBE),
        "constant": np.full_like(CUBE, 7), "all inf": np.full(CUBE.shape, np.inf, np.float32),
        "a tenth NaN": np.where(CUBE % 10 == 0, np.nan, CUBE).astype(np.float32), "1e300": CUBE * 1e300,
        "1e30": CUBE * 1e30, "denormal": (CUBE * 1e-45).astype(np.float32), "-inf to inf":
        np.where(CUBE > 450, np.inf, -np.inf).astype(np.float32), "int64 of 2**62": CUBE.astype(np.int64) << 52,
    }.items():  # fmt: skip
        outcome = {"int64 of 2**62": "refused"}.get(title, "refused")
        add("content", f"nii.gz, {title}", lambda data=data: gz(nifti1(data)), outcome, name="scan.nii.gz")
    for title, data in {
        "one slice": CUBE[:, :, :1], "one slice along the first axis": CUBE[:1], "4-D of one frame": CUBE[..., None],
        "0.5 % NaN": np.where(CUBE == 1, np.nan, CUBE).astype(np.float32), "negative": -CUBE,
    }.items():  # fmt: skip
        add("content", f"nii.gz, {title}", lambda data=data: gz(nifti1(data)), "taken", name="scan.nii.gz")
    small = nifti1()
    for title, content in {
        "bomb: 100 MB after the voxels": lambda: bomb(small, 100),
        "bomb of 100 KB that claims 10^12 voxels": lambda: bomb(nifti1(dim=[3, 10000, 10000, 10000, 1, 1, 1, 1]), 100),
        "bomb: extensions of 200 MB": lambda: bomb(nifti1(vox_offset=2e8)[:348] + b"\1\0\0\0", 120),
        "bomb: a gzip in a gzip": lambda: gz(bomb(small, 100)),
        "100,000 empty members": lambda: gz(small) + gz(b"") * 100_000,
        "a second member of 50 MB": lambda: gz(small) + bomb(b"", 50),
        "wrong checksum": lambda: gz(small)[:-8] + b"\0\0\0\0" + gz(small)[-4:],
        "wrong length": lambda: gz(small)[:-4] + b"\0\0\0\0", "no checksum": lambda: gz(small)[:-8],
        "garbage after the end": lambda: gz(small) + b"garbage" * 99, "text in gzip": lambda: gz(b"no image" * 99),
        "no gzip": lambda: small, "bzip2": lambda: bz2.compress(small), "flags of gzip set": lambda:
        flipped(lambda: gz(small), 0, 3, 4, 1), "a stored name of 60 KB": lambda: _named_gzip(small, 60_000),
    }.items():  # fmt: skip
        add("gzip", f"nii.gz, {title}", content, "either" if "60 KB" in title else "refused", name="scan.nii.gz")
    for title, content in {
        "in two members": lambda: gz(small[:5000]) + gz(small[5000:]),
        "followed by zeros": lambda: gz(small) + bytes(99),
        "with 1000 bytes after the voxels": lambda: gz(small + bytes(1000)),
    }.items():  # fmt: skip
        add("gzip", f"nii.gz, {title}", content, "taken", name="scan.nii.gz")
    for title, code in {"DICOM": 2, "XML": 4, "comment": 6, "CIFTI": 32, "unknown": 9999}.items():
        body = struct.pack("<ii", 64, code) + b"<!DOCTYPE x [<!ENTITY a 'b'>]>".ljust(56)
        content = nifti1(vox_offset=352 + 64)
        add("extension", f"nii, {title}", lambda c=content, b=body: c[:348] + b"\1\0\0\0" + b + c[352:], "taken")
    for title, size in {"of length 2**31-1": 2**31 - 1, "of length -8": -8, "of length 0": 0}.items():
        content, body = nifti1(vox_offset=352 + 64), struct.pack("<ii", size, 6).ljust(64, b"x")
        add("extension", f"nii, {title}", lambda c=content, b=body: c[:348] + b"\1\0\0\0" + b + c[352:], "taken")
    for title, name in {
        "capitals": "SCAN.NII", "not ASCII": "Müller^Jörg 頭部.nii", "long": "n" * 124 + ".nii", "spaces": "a b  c.nii",
        "quotes": "it's \"so\";$(x).nii", "emoji": "🧠.nii",
    }.items():  # fmt: skip
        add("name", f"nii named with {title}", nifti1, "taken", name=name)
    for title, name in {
        "too long": "n" * 250 + ".nii", "dots": "..scan.nii", "no suffix": "scan", "a program's suffix": "scan.py",
        "control characters": "scan\x01.nii", "of bytes beyond the limit": "頭" * 90 + ".nii",
    }.items():  # fmt: skip
        add("name", f"nii named with {title}", nifti1, name=name)
    add("name", "nii.gz named .nii", lambda: gz(nifti1()))
    add("name", "nii named .nrrd", nifti1, name="scan.nrrd")
    add("name", "nrrd named .nii.gz", nrrd, name="scan.nii.gz")
    for title, content in {
        "empty": lambda: b"", "text": lambda: b"this is no image " * 50, "zeros": lambda: bytes(5000), "348 bytes of 1":
        lambda: b"\1" * 348, "PDF": lambda: b"%PDF-1.4", "ELF": lambda: b"\x7fELF" * 500,
        "HTML": lambda: b"<html>" * 99,
    }.items():  # fmt: skip
        for name in ("scan.nii", "scan.nii.gz", "scan.nrrd"):
            add("no image", f"{title} as {name[4:]}", content, name=name)
    return cases


def _named_gzip(content: bytes, length: int) -> bytes:
    packed = gz(content)
    return packed[:3] + b"\x08" + packed[4:10] + b"n" * length + b"\0" + packed[10:]


def _nrrd_cases() -> list[Case]:
    cases: list[Case] = []

    def add(kind, title, content, outcome="refused", name="scan.nrrd", **more):
        cases.append(Case(kind, f"nrrd, {title}", name, content, outcome, **more))

    place = "space: left-posterior-superior\nspace directions: (2,0,0) (0,2,0) (0,0,2)\nspace origin: (0,0,0)\n"
    for file in (
        "/etc/passwd", "../../etc/passwd", "/proc/self/mem", "/dev/zero", "LIST\n/etc/passwd", "slice%03d.raw 1 22 1",
        "datastore_v2.json", "ixi_healthy.nii.gz", "LIST", "",
    ):  # fmt: skip
        content = partial(nrrd, f"{place}data file: {file}", data=b"")
        add("names a file", f"data file: {file.splitlines()[0] if file else 'empty'}", content)
        if "passwd" in file and "LIST" not in file:
            add("names a file", f"datafile: {file}, detached", partial(nrrd, f"{place}datafile: {file}", b""),
                name="scan.nhdr", way="infer")  # fmt: skip
    for part in (0.0005, 0.003, 0.006, 0.01, 0.5, 0.999):
        add("truncated", f"cut at {part:g}", partial(cut, partial(nrrd, place), part))
        add("truncated", f"gzip cut at {part:g}", partial(cut, partial(nrrd, place, encoding="gzip"), part))
    for seed in range(12):
        add("bits flipped", f"header, seed {seed}", partial(flipped, partial(nrrd, place), seed, 0, 170, 2), "either")
    for encoding in ("raw", "gzip", "bzip2", "hex"):
        add("type", f"{encoding}", partial(nrrd, place, encoding=encoding), "taken")
    text = " ".join(map(str, CUBE.ravel(order="F"))).encode()
    add("type", "ascii", partial(nrrd, place, text, encoding="ascii"), "taken")
    for kind in ("uchar", "int8", "unsigned short", "float", "double", "int64", "unsigned long long int"):
        code = {"uchar": "u1", "int8": "i1", "unsigned short": "u2", "float": "f4", "double": "f8", "int64": "i8"}
        data = np.clip(CUBE, 1, 120).astype(code.get(kind, "u8")).tobytes(order="F")
        add("type", kind, partial(nrrd, place, data, type=kind), "taken")
    add("type", "big endian", partial(nrrd, place, CUBE.astype(">i2").tobytes(order="F"), endian="big"), "taken")
    for title, options in {
        "no magic": {"first": "NRRD"}, "magic of version 9": {"first": "NRRD0009"}, "type block": {"type": "block"},
        "no such type": {"type": "quaternion"}, "no such encoding": {"encoding": "lzma"}, "no such order":
        {"endian": "middle"}, "dimension 0": {"dimension": "0"}, "dimension 17": {"dimension": "17"}, "dimension -3":
        {"dimension": "-3"}, "dimension 4 of 3 sizes": {"dimension": "4"}, "sizes 0": {"sizes": "0 21 22"},
        "sizes negative": {"sizes": "-20 21 22"}, "sizes of 10^4": {"sizes": "10000 10000 10000"}, "sizes of 2^62":
        {"sizes": "4611686018427387904 2 2"}, "sizes that wrap round": {"sizes": "4294967296 4294967296 16"},
        "sizes of 40 digits": {"sizes": f"{'9' * 40} 1 1"}, "sizes as text": {"sizes": "a b c"}, "more than it holds":
        {"sizes": "200 210 220"}, "4-D": {"sizes": "20 21 11 2", "dimension": "4"}, "2-D":
        {"sizes": "20 462", "dimension": "2"}, "fractions as sizes": {"sizes": "20.5 21 22"},
    }.items():  # fmt: skip
        add("header", title, partial(nrrd, "" if "dimension" in options else place, **options))
    for title, field in {
        "directions NaN": "space: LPS\nspace directions: (nan,0,0) (0,2,0) (0,0,2)",
        "directions singular": "space: LPS\nspace directions: (2,0,0) (2,0,0) (0,0,2)",
        "directions 0": "space: LPS\nspace directions: (0,0,0) (0,2,0) (0,0,2)",
        "directions inf": "space: LPS\nspace directions: (inf,0,0) (0,2,0) (0,0,2)",
        "directions none": "space: LPS\nspace directions: none none none",
        "two directions": "space: LPS\nspace directions: (2,0,0) (0,2,0)",
        "directions of text": "space: LPS\nspace directions: (a,b,c) (0,2,0) (0,0,2)",
        "directions unclosed": "space: LPS\nspace directions: (2,0,0 (0,2,0) (0,0,2)",
        "spacings 0": "spacings: 0 2 2", "spacings 1e30": "spacings: 1e30 2 2",
        "space of 9 dimensions": "space dimension: 9\nspace directions: (2,0,0) (0,2,0) (0,0,2)",
        "space unknown": "space: left-right-left\nspace directions: (2,0,0) (0,2,0) (0,0,2)",
        "kinds of a vector": "kinds: vector domain domain", "kinds unknown": "kinds: a b c",
        "byte skip -2": "byte skip: -2", "byte skip 10^15": "byte skip: 1000000000000000",
        "line skip -1": "line skip: -1", "line skip 10^15": "line skip: 1000000000000000",
        "line skip 100": "line skip: 100", "a line without a colon": "hello",
        "origin NaN": f"{place.rsplit('space origin', 1)[0]}space origin: (nan,0,0)",
    }.items():  # fmt: skip
        either = any(word in title for word in ("spacings 0", "none", "line skip 100", "singular"))
        add("header", title, partial(nrrd, field), "either" if either else "refused")
    for title, field in {
        "key/value pairs": f"{place}a:=b\npatient:=M\xfcller\nx:={'y' * 3000}", "comments": f"{place}# note\n#\n",
        "fields twice": f"{place}content: a\ncontent: b", "unknown field": f"{place}colour: blue", "capitals":
        place.replace("space:", "Space:"), "byte skip -1": f"{place}byte skip: -1", "no space": "", "content not ASCII":
        f"{place}content: M\xfcller \xff", "centers": f"{place}centers: cell cell cell", "sheared":
        "space: LPS\nspace directions: (2,0,0) (0.6,2,0) (0,0,2)",
    }.items():  # fmt: skip
        add("odd header", title, partial(nrrd, field), "either" if title == "sheared" else "taken")
    add("header", "header of 1 MB", partial(nrrd, "# " + "x" * 2**20))
    add("gzip", "bomb of 100 MB", lambda: nrrd(place, bytes(0), encoding="gzip") + bomb(CUBE.tobytes(), 100))
    packed = partial(nrrd, place, encoding="gzip")
    huge = partial(nrrd, place, b"", encoding="gzip", sizes="999 999 999")
    add("gzip", "bomb that claims 10^9 voxels", lambda: huge() + bomb(b"", 100))
    add("gzip", "wrong checksum", lambda: packed()[:-8] + bytes(4) + packed()[-4:])
    add("gzip", "plain voxels said to be gzip", lambda: nrrd(place).replace(b"encoding: raw", b"encoding: gzip"))
    add("gzip", "bzip2 cut", lambda: nrrd(place, encoding="bzip2")[:-100])
    add("content", "ascii that is no number", partial(nrrd, place, b"one two three " * 5000, encoding="ascii"))
    add("content", "hex that is none", lambda: nrrd(place).replace(b"encoding: raw", b"encoding: hex"))
    add("content", "all NaN", partial(nrrd, place, np.full(9240, np.nan, "f4").tobytes(), type="float"))
    add("content", "constant", partial(nrrd, place, bytes(18480)))
    return cases


def _other_cases() -> list[Case]:
    cases: list[Case] = []

    def add(kind, title, content, outcome="refused", name="scan.mha", way="infer"):
        cases.append(Case(kind, title, name, content, outcome, way))

    for file in ("/etc/passwd", "../../etc/passwd", "LIST", "LIST 2\n/etc/passwd", "a%03d.raw 1 22 1", "/dev/zero"):
        content, title = partial(mha, data=b"", file=file), f"ElementDataFile {file.splitlines()[0]}"
        add("names a file", f"mha, {title}", content)
        add("names a file", f"mhd, {title}", content, name="a.mhd")
    for title, options in {
        "DimSize negative": {"dims": "-20 21 22"}, "DimSize 10^4": {"dims": "10000 10000 10000"}, "DimSize 2^63":
        {"dims": "9223372036854775807 2 2"}, "NDims 0": {"n": "0"}, "NDims 99": {"n": "99"}, "NDims text": {"n": "x"},
        "no such type": {"kind": "MET_STRING"}, "MET_LONG": {"kind": "MET_LONG"}, "an array type":
        {"kind": "MET_SHORT_ARRAY"}, "3 channels": {"fields": "ElementNumberOfChannels = 3\n"}, "spacing 0":
        {"fields": "ElementSpacing = 0 2 2\n"}, "spacing NaN": {"fields": "ElementSpacing = nan 2 2\n"},
        "spacing of two": {"fields": "ElementSpacing = 2 2\n"}, "matrix singular":
        {"fields": "TransformMatrix = 1 0 0 1 0 0 0 0 1\n"},
        "compressed, but is not": {"fields": "CompressedData = True\n"},
        "more than it holds": {"dims": "200 210 220"}, "binary header": {"fields": "\0\1\2\3 = \0\n"},
    }.items():  # fmt: skip
        add("header", f"mha, {title}", partial(mha, **options), "either" if title == "spacing 0" else "refused")
    packed = zlib.compress(CUBE.tobytes(order="F"))
    add("type", "mha, compressed", partial(mha, "CompressedData = True\n", packed), "taken")
    add("type", "mha, plain", mha, "taken")
    add("gzip", "mha, bomb", lambda: mha("CompressedData = True\n", zlib.compress(CUBE.tobytes() + bytes(2**27))))
    add("truncated", "mha, cut", partial(cut, mha, 0.5))
    for title, content in {
        "cut": partial(cut, picture, 0.6), "cut in its header": partial(cut, picture, 0.004), "colour":
        partial(picture, mode="RGB"), "transparent": partial(picture, mode="RGBA"), "of 8x8": partial(picture, (8, 8)),
        "that claims 2^31 x 2^31": partial(png_claiming, 2**31 - 1, 2**31 - 1), "that claims 60000 x 60000":
        partial(png_claiming, 60000, 60000), "of no pixels": partial(png_claiming, 0, 0), "text bomb":
        lambda: picture(info={"a": "x" * 80_000_000}), "of one grey": lambda: _one_grey(),
    }.items():  # fmt: skip
        add("picture", f"png {title}", content, name="slice.png")
    for seed in range(6):
        add("picture", f"png, seed {seed}", partial(flipped, picture, seed, 8, None, 3), "either", name="slice.png")
    add("picture", "png of noise", picture, "taken", name="slice.png")
    add("picture", "JPEG", lambda: b"\xff\xd8\xff\xe0" + bytes(500), name="slice.jpg")
    add("picture", "png that is a JPEG", lambda: b"\xff\xd8\xff\xe0" + bytes(500), name="slice.png")
    add("pair", "hdr alone", lambda: nifti1(magic=b"ni1")[:348], name="scan.hdr")
    add("pair", "img alone", CUBE.tobytes, name="scan.img")
    add("pair", "Analyze 7.5 header", lambda: nifti1(magic=b"")[:348], name="scan.nii")
    return cases


def _one_grey() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (64, 64), 9).save(stream, "PNG")
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive for ``PUT /session/?uncompress=true``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _dicom_cases() -> list[Case]:
    return [
        Case("DICOM", f"DICOM, {title}", "series.zip", lambda make=make: zipped(make()), outcome, "session")
        for title, (make, outcome) in DICOM_CASES.items()
    ]


CASES = [*_nifti_cases(), *_nrrd_cases(), *_other_cases(), *_dicom_cases()]
