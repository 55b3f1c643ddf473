"""Inputs that are nearly right, made of a fuzzer's bytes: archives, answers of a DICOMweb archive, model folders.

Bytes that are changed at random are refused at the first one that does not fit. Here the bytes choose what is made, and
what of it is wrong, so that the rest is right and what lies behind the first check is reached.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import atheris

Provider = atheris.FuzzedDataProvider

_PARTS = (
    "a", "scan.dcm", "1.dcm", "series", "scan.nii.gz", "..", ".", "", "C:", "a\\b", "x\0y", "MR#1", "É^HANS\n",
    "000000",    "inner.zip", "n" * 250, "\udcff", "-rf", "con", "a.dcm ", "~", "config.yaml",
)  # fmt: skip
_KINDS = (0o100644, 0, 0o040755, 0o120777, 0o020666, 0o010600)
_TAR_KINDS = (
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE,
    tarfile.CHRTYPE, tarfile.SOLARIS_XHDTYPE, b"Z",
)  # fmt: skip
_SIZES = (0, 1, 511, 512, 513, 2**16, 2**20, 2**31, 2**32 - 1, 2**33, -1, -1024)


def archive(data: Provider) -> bytes:
    """A .zip or .tar of a few members: names, kinds, packings and sizes as ``data`` says, now and then wrong ones."""
    made = _zip(data) if data.ConsumeBool() else _tar(data)
    return _spoilt(data, made)


def _spoilt(data: Provider, content: bytes) -> bytes:
    """Mostly as it is; else cut off, or with a few bytes changed."""
    way = data.ConsumeIntInRange(0, 9)
    if way == 0:
        return content[: data.ConsumeIntInRange(0, len(content))]
    spoilt = bytearray(content)
    for _ in range(data.ConsumeIntInRange(1, 3) if way < 3 and content else 0):
        spoilt[data.ConsumeIntInRange(0, len(content) - 1)] = data.ConsumeIntInRange(0, 255)
    return bytes(spoilt)


def _name(data: Provider, former: list[str]) -> str:
    if former and data.ConsumeIntInRange(0, 7) == 0:
        # Twice, or as a folder of it.
        return data.PickValueInList(former) + data.PickValueInList(["", "/b", "/"])
    parts = [data.PickValueInList(["a", "b", "1.dcm", "2.dcm", "scan.nii.gz", data.PickValueInList(list(_PARTS))])]
    for _ in range(data.ConsumeIntInRange(0, 3)):
        parts.append(data.PickValueInList(["a", "b", "series", "1.dcm", data.PickValueInList(list(_PARTS))]))
    return "/".join(parts)


def _content(data: Provider) -> bytes:
    way = data.ConsumeIntInRange(0, 5)
    if way == 0:
        return b"\0" * data.PickValueInList([0, 600, 70_000, 300_000])
    return data.ConsumeBytes(data.ConsumeIntInRange(0, 40)) * data.PickValueInList([1, 1, 20, 100])


def _zip(data: Provider) -> bytes:
    made, names = io.BytesIO(), []
    with zipfile.ZipFile(made, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(data.ConsumeIntInRange(0, 7)):
            name = _name(data, names).encode("utf-8", "replace").decode()
            names.append(name)
            info = zipfile.ZipInfo(name or "x")
            # The library cuts names itself.
            info.filename = name
            info.compress_type = data.PickValueInList([0, 8, 8, 12, 14])
            info.external_attr = _KINDS[data.ConsumeIntInRange(0, 11) % len(_KINDS)] << 16
            if data.ConsumeIntInRange(0, 9) == 0:
                info.extra = data.ConsumeBytes(12)
            target.writestr(info, _content(data))
        target.comment = data.ConsumeBytes(data.ConsumeIntInRange(0, 3))
    content = bytearray(made.getvalue())
    # Lies: of the list (flags, packing, sums, sizes, place) or of what stands before a member.
    for _ in range(data.ConsumeIntInRange(0, 2)):
        mark, fields = data.PickValueInList(
            [(b"PK\x01\x02", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
             (b"PK\x03\x04", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
             (b"PK\x05\x06", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))]
        )  # fmt: skip
        places = [place for place in range(len(content) - 46) if content[place : place + 4] == mark] or [0]
        offset, width = data.PickValueInList(list(fields))
        place = data.PickValueInList(places) + offset
        value = data.PickValueInList([*_SIZES, data.ConsumeIntInRange(0, 2**32 - 1)]) & (256**width - 1)
        content[place : place + width] = value.to_bytes(width, "little")
    return bytes(content)


def _tar(data: Provider) -> bytes:
    made, names = bytearray(), []
    for _ in range(data.ConsumeIntInRange(0, 7)):
        name = _name(data, names)
        names.append(name)
        info = tarfile.TarInfo(name)
        info.type = _TAR_KINDS[data.ConsumeIntInRange(0, 2 * len(_TAR_KINDS)) % len(_TAR_KINDS)]
        content = _content(data)
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}:
            content = _pax(data)
        elif info.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}:
            content = _name(data, names).encode("utf-8", "surrogateescape") + b"\0"
        content = b"" if info.type in {tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE} else content
        lie = data.ConsumeIntInRange(0, 11) == 0
        info.size = data.PickValueInList(list(_SIZES)) if lie else len(content)
        info.linkname = data.PickValueInList(["", "/etc/passwd", "../a", "a"])
        try:
            header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        except (ValueError, UnicodeError):
            continue
        made += header + content + b"\0" * (-len(content) % 512)
    made += b"\0" * data.PickValueInList([1024, 1024, 1024, 512, 0])
    packing = data.ConsumeIntInRange(0, 5)
    if packing == 4:
        return gzip.compress(made, 1)
    return bz2.compress(made, 1) if packing == 5 else bytes(made)


def _pax(data: Provider) -> bytes:
    records = b""
    for _ in range(data.ConsumeIntInRange(0, 3)):
        key = data.PickValueInList(["path", "path", "size", "linkpath", "comment", "GNU.sparse.size"])
        value = data.PickValueInList(["a/b.dcm", "../x", "0", "-1", "9" * 30, "\0", "", "x=y", "n" * 300, "é"])
        text = f" {key}={value}\n".encode()
        records += data.PickValueInList([str(len(text) + 2).encode(), b"", b"-1", b"99999999999999"]) + text
    return records


_TAGS = (
    "0020000E", "0020000D", "00100020", "00100021", "00100010", "00080060", "0008103E", "00080020", "00201209",
    "00081115", "00620002", "00620008", "00080070", "00280010", "00091010", "7FE00010", "00080005", "00080018",
    "0020000e", "SeriesInstanceUID", "FFFEE000", "",
)  # fmt: skip
_USUAL = {
    "0020000E": "UI", "0020000D": "UI", "00100020": "LO", "00100021": "LO", "00100010": "PN", "00080060": "CS",
    "0008103E": "LO", "00080020": "DA", "00201209": "IS", "00081115": "SQ", "00620002": "SQ", "00620008": "CS",
    "00080070": "LO", "00280010": "US", "00091010": "OB", "7FE00010": "OW", "00080005": "CS", "00080018": "UI",
}  # fmt: skip
_VRS = (
    "AE", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "OB", "OW", "PN", "SH", "SQ", "SS", "SV", "TM", "UI",
    "UL", "UN", "UR", "US", "UT", "UV", "XX",
)  # fmt: skip
_SAID = ("1.2.3", "1.2.4", "1.2.3", "../../x", "1.2.3/..", "A^B", "", " ", "MR", "20260101", "12", "-1", "ISO_IR 192",
         "AUTOMATIC", "\0", "x" * 300, "1..2", "nan", "é", "ISO 2022 IR 87")  # fmt: skip
_ODD = (None, True, 0, 1, -1, 3.5, 2**40, 1e308, float("inf"), [], {}, [[]], [None], "x")


def series_list(data: Provider, deep: int = 0) -> Any:
    """A list of data sets as DICOM JSON, most of them with a UID of their own."""
    if deep == 0 and data.ConsumeIntInRange(0, 30) == 0:
        return data.PickValueInList(list(_ODD))
    return [_data_set(data, deep) for _ in range(data.ConsumeIntInRange(0, 4 if deep == 0 else 2))]


def _data_set(data: Provider, deep: int) -> Any:
    if data.ConsumeIntInRange(0, 20) == 0:
        return data.PickValueInList(list(_ODD))
    item: dict[str, Any] = {}
    if data.ConsumeIntInRange(0, 8):
        item["0020000E"] = {"vr": "UI", "Value": [data.PickValueInList(["1.2.3", "1.2.3", "1.2.4", "1.2.5"])]}
    for _ in range(data.ConsumeIntInRange(0, 6)):
        tag = data.PickValueInList(list(_TAGS))
        item[tag] = _attribute(data, _USUAL.get(tag, "LO"), deep)
    return item


def _attribute(data: Provider, usual: str, deep: int) -> Any:
    way = data.ConsumeIntInRange(0, 15)
    if way == 0:
        return data.PickValueInList(list(_ODD))
    attribute: dict[str, Any] = {"vr": data.PickValueInList([usual, usual, usual, data.PickValueInList(list(_VRS))])}
    if way == 1:
        attribute["vr"] = data.PickValueInList(list(_ODD))
    if way == 2:
        key = data.PickValueInList(["InlineBinary", "BulkDataURI"])
        attribute[key] = data.PickValueInList(["QUJD", "A", "http://a.invalid/1", "", None, 3, ["QUJD"]])
    elif way != 3:
        attribute["Value"] = [_value(data, str(attribute["vr"]), deep) for _ in range(data.ConsumeIntInRange(0, 2))]
    if way == 4:
        attribute["Value"] = data.PickValueInList(list(_ODD))
    return attribute


def _value(data: Provider, vr: str, deep: int) -> Any:
    if data.ConsumeIntInRange(0, 12) == 0:
        return data.PickValueInList(list(_ODD))
    if vr == "SQ":
        return _data_set(data, deep + 1) if deep < 3 else {}
    if vr == "PN":
        return {data.PickValueInList(["Alphabetic", "Ideographic", "X"]): data.PickValueInList(list(_SAID))}
    if vr in {"US", "UL", "SS", "SL", "IS", "DS", "FD", "FL"} and data.ConsumeBool():
        return data.PickValueInList([0, 1, 2, 3, 70_000, -1, 1.5])
    return data.PickValueInList(list(_SAID))


def multipart(data: Provider, objects: Sequence[bytes]) -> tuple[str, bytes]:
    """Content type and body of an answer with some of ``objects``, each possibly spoilt."""
    boundary = data.PickValueInList(["xx", "xx", "xx", "x y", "", "é"])
    body = b""
    for _ in range(data.ConsumeIntInRange(0, 3)):
        head = data.PickValueInList([b"Content-Type: application/dicom\r\n\r\n"] * 3 + [b"\r\n", b"", b"\xff\r\n\r\n"])
        body += b"\r\n--" + boundary.encode() + b"\r\n" + head + _spoilt(data, data.PickValueInList(list(objects)))
    body += data.PickValueInList([b"\r\n--xx--", b"\r\n--xx--", b"", b"\r\n--"])
    kind = data.PickValueInList(
        [f'multipart/related; type="application/dicom"; boundary={boundary}'] * 4
        + ["multipart/related", "text/html", "application/dicom", "multipart/related; boundary", ";;", ""]
    )
    return kind, body


def changed(data: Provider, value: Any) -> Any:
    """A copy of plain values in which a few are of another kind, gone, or there as well."""
    value = json.loads(json.dumps(value))
    for _ in range(data.ConsumeIntInRange(0, 3)):
        at = value
        while isinstance(at, (dict, list)) and at:
            key = data.PickValueInList(list(at)) if isinstance(at, dict) else data.ConsumeIntInRange(0, len(at) - 1)
            inner = at[key]
            if isinstance(inner, (dict, list)) and inner and data.ConsumeIntInRange(0, 3):
                at = inner
                continue
            way = data.ConsumeIntInRange(0, 5)
            if way == 0:
                del at[key]
            elif way == 1 and isinstance(at, dict):
                at[data.PickValueInList(["x", "", "scores", "members", "hashes", "config", "levels", "mean_ap"])] = (
                    inner
                )
            else:
                at[key] = data.PickValueInList(
                    [*_ODD, "nan", "ddpm", "ensemble", "../x", 10**9, 2**70, -0.0, float("nan"), [1, 2], {"a": 1}]
                )
            break
    return value


def tensors(data: Provider, content: bytes) -> bytes:
    """A file of safetensors whose header is changed here and there: names, kinds, shapes, places, its own length."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(data.ConsumeIntInRange(0, 3)):
        names = [name for name in header if name != "__metadata__"]
        if not names:
            break
        name = data.PickValueInList(names)
        entry = header[name]
        way = data.ConsumeIntInRange(0, 6)
        if way == 0:
            entry["dtype"] = data.PickValueInList(
                ["F16", "F32", "F64", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X"]
            )
        elif way == 1:
            entry["shape"] = data.PickValueInList(
                [[], [0], [1], [-1], [2**62, 4], [3, 3], entry["shape"] * 2, entry["shape"][::-1], "x", None]
            )
        elif way == 2:
            entry["data_offsets"] = data.PickValueInList(
                [[0, 0], [0, 2], [0, len(body)], entry["data_offsets"][::-1], [2**63, 2**64], [-1, 1], [1], "x"]
            )
        elif way == 3:
            del header[name]
        elif way == 4:
            header[data.PickValueInList(["x", "", "a/b/c", name + "/mean", "../x", name.swapcase()])] = header.pop(name)
        elif way == 5:
            # What it says fits: fewer voxels, of another kind.
            width = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "U8": 1, "I64": 8, "F64": 8, "BOOL": 1}.get(
                entry["dtype"], 1
            )
            begin, end = entry["data_offsets"]
            kind, other = data.PickValueInList([("U8", 1), ("F16", 2), ("I32", 4), ("F32", 4), ("F64", 8), ("BOOL", 1)])
            if isinstance(begin, int) and isinstance(end, int) and (end - begin) % other == 0 and width:
                entry["dtype"], entry["shape"] = kind, [(end - begin) // other]
        else:
            places = entry["data_offsets"]
            if isinstance(places[0], int) and len(places) == 2 and 0 <= places[0] < places[1] <= len(body):
                fill = data.PickValueInList([b"\0", b"\xff", b"\x7c", b"\x80", b"\x01"])
                width = data.PickValueInList([4, places[1] - places[0]])
                body = body[: places[0]] + (fill * width)[: places[1] - places[0]] + body[places[0] + width :]
    head = json.dumps(header, allow_nan=True).encode()
    lie = data.PickValueInList([0] * 12 + [1, -1, 2**40])
    return struct.pack("<Q", max(0, len(head) + lie)) + head + body
