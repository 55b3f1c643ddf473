"""Archives from outside are looked through before anything of them is written, and are unpacked within limits.

What a bomb claims and what it really holds are both counted: the sizes in an archive's list, and the bytes as they come
(David Fifield, "A better zip bomb", WOOT 2019: overlapping entries multiply what a list seems to hold).
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lib.errors import InvalidRequest, TooLarge

_CHUNK = 2**20
_BLOCK = tarfile.BLOCKSIZE
_PLAIN = re.compile(r"[\w .,()=+@~-]{1,120}")
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")
_NESTED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_SCANS = (".nii.gz",)
_LONG_NAMES = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_LONGEST_HEADER = 64 * 1024
# Bytes of a part of a path; file systems take 255.
_LONGEST_PART = 240
# Not LZMA (nor .tar.xz): how much memory unpacking takes is up to the file there.
_PACKINGS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
# ValueError and IndexError: of the library, for names in a list that are no UTF-8, or none at all.
_FAULTS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, ValueError, IndexError,
)  # fmt: skip
_DAMAGED = "expected an archive (.zip, .tar, .tar.gz, .tar.bz2) that can be unpacked, got another or a damaged file"


@dataclass(frozen=True)
class UnpackLimits:
    """entries: files and folders. total: bytes unpacked. ratio: unpacked over packed, looked at above ``small`` bytes.

    depth: folders within each other. A series of DICOM files packs 2 to 4 times, an empty head 20 times.
    """

    entries: int = 20_000
    total: int = 4 * 2**30
    ratio: float = 200.0
    small: int = 64 * 2**20
    depth: int = 8


@dataclass(frozen=True)
class Entry:
    """A regular file in an archive. name: as the archive has it, checked; size in bytes."""

    name: str
    size: int


def entries_of(archive: Path, limits: UnpackLimits) -> list[Entry]:
    """What an archive holds, without writing anything. Raises InvalidRequest, TooLarge."""
    return [entry for entry, _ in _walk(archive, limits)]


def unpack(archive: Path, folder: Path, limits: UnpackLimits) -> list[Path]:
    """The archive's files in ``folder`` (empty, there), after all of it was looked through. Raises as ``entries_of``.

    A name that is not plain is replaced by a number, a folder's by the same one for all that is in it; nothing is
    written outside of ``folder``. After an error the caller removes the folder.
    """
    names = _PlainNames(entry.name for entry in entries_of(archive, limits))
    written = []
    for entry, content in _walk(archive, limits):
        path = folder.joinpath(*names.parts(entry.name))
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidRequest("expected files inside the archive's own folder, got one that leads out of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            for piece in content:
                target.write(piece)
        written.append(path)
    return written


class _PlainNames:
    """Names to write for those of an archive."""

    def __init__(self, names: Iterable[str]):
        self._taken = {part for name in names for part in PurePosixPath(name).parts}
        self._given: dict[PurePosixPath, str] = {}

    def parts(self, name: str) -> list[str]:
        """Of the path to write; a part that is not plain, or too long, is a number that nothing else is called."""
        path = PurePosixPath(name)
        return [self._part(place) for place in (*reversed(path.parents[:-1]), path)]

    def _part(self, place: PurePosixPath) -> str:
        part = place.name
        if _PLAIN.fullmatch(part) and len(part.encode()) <= _LONGEST_PART:
            return part
        if place not in self._given:
            ending = place.suffix if _ENDING.fullmatch(place.suffix) else ""
            free = (f"{number:06d}{ending}" for number in itertools.count(len(self._given)))
            self._given[place] = next(word for word in free if word not in self._taken)
            self._taken.add(self._given[place])
        return self._given[place]


def _walk(archive: Path, limits: UnpackLimits) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Each file with its content, which is read (and counted) to its end before the next."""
    walk = _walk_zip if zipfile.is_zipfile(archive) else _walk_tar
    try:
        for entry, content in walk(archive, _Count(archive.stat().st_size, limits)):
            yield entry, content
            for _ in content:
                pass
    except _FAULTS as error:
        raise InvalidRequest(_DAMAGED) from error
    except RuntimeError as error:
        # Of zipfile, for an entry with a password.
        raise InvalidRequest("expected an archive without a password") from error


class _Count:
    """What came so far."""

    def __init__(self, packed: int, limits: UnpackLimits):
        self._packed, self._limits = max(packed, 1), limits
        self._entries = self._total = 0
        self._names: set[str] = set()
        self._folders: set[str] = set()
        self.longest_list = 512 * limits.entries

    def entry(self, name: str, size: int, is_file: bool) -> Entry:
        """Raises for a name that leads out, comes twice or is an archive itself, and for too many or too large ones."""
        self._entries += 1
        if self._entries > self._limits.entries:
            raise TooLarge(f"expected an archive of at most {self._limits.entries} files, got more")
        self._check(self._total + size)
        clean = name[:-1] if name.endswith("/") else name
        parts = clean.split("/")
        unsafe = clean.startswith("/") or "\\" in clean or "\0" in clean or ":" in parts[0] or ".." in parts
        if unsafe or (is_file and parts[-1] in {"", "."}):
            raise InvalidRequest("expected plain relative names in the archive, got one that leads out of its folder")
        if len(parts) > self._limits.depth:
            raise InvalidRequest(f"expected at most {self._limits.depth} folders within each other, got more")
        lower = clean.lower()
        if is_file and lower.endswith(_NESTED) and not lower.endswith(_SCANS):
            raise InvalidRequest("expected an archive of scans, got one with another archive in it: unpack that first")
        if is_file:
            plain = "/".join(part for part in parts if part not in {"", "."})
            if plain in self._names:
                raise InvalidRequest("expected every name in the archive once, got one twice")
            folders = {folder.as_posix() for folder in PurePosixPath(plain).parents}
            if plain in self._folders or folders & self._names:
                raise InvalidRequest("expected every name in the archive once, got one of a file and of a folder")
            self._names.add(plain)
            self._folders |= folders
        return Entry("/".join(part for part in parts if part not in {"", "."}), size)

    def bytes(self, more: int) -> None:
        """Raises TooLarge when with ``more`` bytes it is too much."""
        self._total += more
        self._check(self._total)

    def _check(self, total: int) -> None:
        if total > self._limits.total:
            raise TooLarge(
                f"expected an archive of at most {self._limits.total // 2**20} MiB unpacked, got a larger one"
            )
        if total > self._limits.small and total / self._packed > self._limits.ratio:
            raise TooLarge(
                f"expected scans, which pack to no less than 1/{self._limits.ratio:g}; got an archive packed tighter"
            )


def _walk_zip(path: Path, count: _Count) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    _check_directory(path, count)
    with zipfile.ZipFile(path) as archive:
        listed = archive.infolist()
        for info in listed:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise InvalidRequest("expected files and folders in the archive, got a link or a device")
            if info.compress_type not in _PACKINGS:
                raise InvalidRequest("expected an archive packed by deflate, got one that is packed in another way")
            # orig_filename: as it is written there; the library cuts names at a zero byte.
            entry = count.entry(info.orig_filename, info.file_size, not info.is_dir())
            if info.is_dir():
                continue
            with archive.open(info) as stream:
                yield entry, _counted(stream, info.file_size, count)


def _check_directory(path: Path, count: _Count) -> None:
    """The library reads the list of a .zip whole; its size stands at the file's end (APPNOTE 4.3.16)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65557 - 20))
        end = file.read()
    place = end.rfind(b"PK\x05\x06")
    size = int.from_bytes(end[place + 12 : place + 16], "little")
    # A list that says so is of more than 65535 files or 4 GiB.
    if place >= 20 and end[place - 20 : place].startswith(b"PK\x06\x07"):
        size = 2**32
    if size > count.longest_list:
        raise TooLarge("expected an archive with a shorter list of files")


def _walk_tar(path: Path, count: _Count) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """A reader of our own for the few kinds there may be: the library's reads names of any length into memory."""
    long_name = None
    with _unpacked(path) as stream:
        while len(block := stream.read(_BLOCK)) == _BLOCK and block.strip(b"\0"):
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            padding = -info.size % _BLOCK
            count.bytes(_BLOCK)
            if info.size < 0:
                raise tarfile.ReadError("a size below zero")
            if info.type in _LONG_NAMES:
                if info.size > _LONGEST_HEADER:
                    raise TooLarge("expected names of ordinary length in the archive, got a longer one")
                text = stream.read(info.size + padding)[: info.size]
                count.bytes(info.size + padding)
                long_name = _long_name(info.type, text) or long_name
                continue
            if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
                raise InvalidRequest("expected files and folders in the archive, got a link or a device")
            name, long_name = long_name or info.name, None
            size = 0 if info.type == tarfile.DIRTYPE else info.size
            entry = count.entry(name, size, info.type != tarfile.DIRTYPE)
            if info.type == tarfile.DIRTYPE:
                continue
            yield entry, _counted(stream, size, count)
            stream.read(padding)
        if len(block) != _BLOCK:
            raise tarfile.ReadError("no end of the archive")


def _long_name(kind: bytes, text: bytes) -> str | None:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return text.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if kind == tarfile.XHDTYPE:
        # Records "LENGTH key=value\n"; a size that differs from the header's would hide what follows.
        records = dict(line.partition(b" ")[2].partition(b"=")[::2] for line in text.split(b"\n") if b"=" in line)
        if b"size" in records:
            raise InvalidRequest("expected an archive of files below 8 GiB, got a larger one")
        return records[b"path"].decode("utf-8", "surrogateescape") if b"path" in records else None
    return None


def _counted(stream: BinaryIO, size: int, count: _Count) -> Iterator[bytes]:
    left = size
    while left > 0:
        piece = stream.read(min(_CHUNK, left))
        if not piece:
            raise EOFError
        left -= len(piece)
        count.bytes(len(piece))
        yield piece


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The archive as plain tar, told by its first bytes."""
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        elif head.startswith(b"BZh"):
            with bz2.BZ2File(file) as stream:
                yield stream
        else:
            yield file
