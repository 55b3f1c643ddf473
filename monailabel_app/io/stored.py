"""The stored numbers of an image, unpacked piece by piece, and never more of them than its header announces.

A compressed stream can be a thousand times longer than its file, and a damaged header can announce anything. So the
stream is read in pieces of bounded size straight into the voxels, and what follows the last voxel is looked at only to
verify the checksum: a stream that goes on is refused instead of unpacked.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from monailabel_app.errors import UnreadableVolume
from monailabel_app.io.memory import check_memory

# The most that the compressions can pack into a byte: deflate cannot pass 1032, bzip2 is higher on constant data.
MAX_RATIO = {"raw": 1, "deflate": 1100, "bzip2": 200_000, "ascii": 1, "hex": 1}
# What may follow the last voxel: padding to whole blocks, as some writers add it.
MAX_TRAILING = 2**20
_PIECE = 2**20
_VOXELS_AT_ONCE = 2**20
# Writers that compress in blocks make one member of some ten thousand bytes; empty ones only cost time.
_FREE_MEMBERS, _BYTES_PER_MEMBER = 1000, 1024
# Characters of a number that is written out; in full, the smallest of double precision takes some hundred.
_LONGEST_NUMBER = 1100
_SPACES = (b" ", b"\n", b"\t", b"\r", b"\v", b"\f")

Convert = Callable[[np.ndarray], np.ndarray]


class Damaged(Exception):
    """The stored numbers end too early, or cannot be unpacked; the text says which, and is for the user."""


@dataclass(frozen=True)
class Stored:
    """Where numbers lie. start: byte of the file; skip: bytes left out after unpacking; packing: of ``MAX_RATIO``."""

    path: Path
    dtype: np.dtype
    count: int
    start: int = 0
    skip: int = 0
    packing: str = "raw"

    @property
    def promised(self) -> int:
        """Bytes that there have to be when unpacked; for numbers written as text, characters."""
        return self.count * {"ascii": 1, "hex": 2 * self.dtype.itemsize}.get(self.packing, self.dtype.itemsize)

    def check_length(self) -> None:
        """Raises UnreadableVolume for a file too short to hold them, before anything is allocated."""
        size = self.path.stat().st_size
        if max(0, size - self.start) * MAX_RATIO[self.packing] < self.promised + self.skip:
            raise UnreadableVolume(
                f"expected {self.promised} bytes of voxels as the header promises, got a file of {size} bytes: it is "
                "truncated or damaged, copy or export it again"
            )


def read_stored(stored: Stored, convert: Convert | None = None) -> np.ndarray:
    """All of the numbers, as they lie, as one row (count,) of float32.

    convert: makes float32 of a piece of them; what is too large becomes infinite. Raises UnreadableVolume.
    """
    stored.check_length()
    check_memory(stored.count)
    convert = convert or (lambda piece: piece.astype(np.float32))
    out = np.empty(stored.count, dtype=np.float32)
    done = 0
    try:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for piece in _pieces(stored):
                out[done : done + piece.size] = convert(piece)
                done += piece.size
    except Damaged as reason:
        raise UnreadableVolume(
            f"expected {stored.count} voxels as the header promises, got {reason}: the file is truncated or damaged, "
            "copy or export it again"
        ) from None
    return out


@contextmanager
def unpacked(path: Path, packing: str, start: int = 0) -> Iterator[Unpacked]:
    """The bytes of a file from ``start`` on, unpacked as they are asked for."""
    with path.open("rb") as file:
        file.seek(start)
        yield Unpacked(file, packing)


class Unpacked:
    """A stream that unpacks no more than what is asked for. Its methods raise Damaged."""

    def __init__(self, file: BinaryIO, packing: str):
        self._file, self._packing = file, packing
        self._engine = None if packing == "raw" else _engine(packing)
        self._rest = b""
        self._members, self._given = 1, 0

    def read(self, size: int) -> bytes:
        """``size`` bytes, or those that there are before the end."""
        parts, missing = [], size
        while missing > 0:
            part = self._more(min(missing, _PIECE))
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Leave out ``size`` bytes. Raises Damaged when there are fewer."""
        while size > 0:
            part = self.read(min(size, _PIECE))
            if not part:
                raise Damaged("fewer")
            size -= len(part)

    def finish(self) -> None:
        """Unpack to the end, so that the checksum is verified. Raises Damaged where more follows than padding."""
        if self._engine is not None and len(self.read(MAX_TRAILING + 1)) > MAX_TRAILING:
            raise Damaged("a compressed stream that goes on after them")

    def _more(self, size: int) -> bytes:
        if self._engine is None:
            return self._file.read(size)
        while True:
            try:
                part, ended = self._unpack(size)
            except (zlib.error, OSError, ValueError, EOFError):
                raise Damaged("compressed data that cannot be unpacked") from None
            self._given += len(part)
            if part:
                return part
            if ended:
                return b""

    def _unpack(self, size: int) -> tuple[bytes, bool]:
        engine = self._engine
        if engine.eof:
            self._rest = engine.unused_data or self._file.read(_PIECE)
            if not self._rest.strip(b"\0"):
                return b"", True
            self._members += 1
            if self._members > _FREE_MEMBERS + self._given // _BYTES_PER_MEMBER:
                raise Damaged("a compressed stream of too many empty parts")
            if self._rest[:1] != (b"\x1f" if self._packing == "deflate" else b"B"):
                # What follows the stream and is none itself: gzip's own reader calls it garbage and refuses.
                raise Damaged("something else after the compressed data")
            engine = self._engine = _engine(self._packing)
        if self._packing == "bzip2":
            if engine.needs_input and not self._rest:
                self._rest = self._file.read(_PIECE // 16)
                if not self._rest:
                    raise Damaged("compressed data that ends too early")
            feed, self._rest = self._rest, b""
            return engine.decompress(feed, size), False
        feed = self._rest or engine.unconsumed_tail or self._file.read(_PIECE // 16)
        self._rest = b""
        if not feed:
            part = engine.decompress(b"", size)
            if not part and not engine.eof:
                raise Damaged("compressed data that ends too early")
            return part, False
        return engine.decompress(feed, size), False


def _engine(packing: str):
    # 32 + 15: gzip and zlib streams alike.
    return bz2.BZ2Decompressor() if packing == "bzip2" else zlib.decompressobj(47)


def _pieces(stored: Stored) -> Iterator[np.ndarray]:
    if stored.packing in ("ascii", "hex"):
        yield from _from_text(stored)
        return
    with unpacked(stored.path, stored.packing, stored.start) as stream:
        stream.skip(stored.skip)
        left = stored.count
        while left:
            size = min(left, _VOXELS_AT_ONCE)
            part = stream.read(size * stored.dtype.itemsize)
            if len(part) != size * stored.dtype.itemsize:
                raise Damaged("fewer")
            yield np.frombuffer(part, dtype=stored.dtype)
            left -= size
        stream.finish()


def _from_text(stored: Stored) -> Iterator[np.ndarray]:
    """Numbers written out, read like others: a word of text in memory takes many times what it says."""
    left = stored.count
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        for text in _whole_words(file, stored):
            found = _numbers(text, stored)[:left]
            left -= found.size
            yield found
            if not left:
                # What follows may be anything, as a file of text ends somehow; but not without end.
                if len(file.read(MAX_TRAILING + 1)) > MAX_TRAILING:
                    raise Damaged("more")
                return
    raise Damaged("fewer")


def _whole_words(file: BinaryIO, stored: Stored) -> Iterator[bytes]:
    """The text in pieces that end where a number does."""
    begun = b""
    while piece := file.read(_PIECE // 4):
        text = begun + piece
        if stored.packing == "hex":
            text = b"".join(text.split())
            end = len(text) - len(text) % (2 * stored.dtype.itemsize)
        else:
            text = text.replace(b",", b" ")
            # Up to the last white space: what follows it may go on in the next piece.
            end = 1 + max(text.rfind(space) for space in _SPACES)
        begun = text[end:]
        if len(begun) > _LONGEST_NUMBER:
            raise Damaged("something that is no number")
        if text[:end]:
            yield text[:end]
    if begun:
        yield begun


def _numbers(text: bytes, stored: Stored) -> np.ndarray:
    try:
        if stored.packing == "hex":
            return np.frombuffer(bytes.fromhex(text.decode("ascii")), dtype=stored.dtype)
        words = text.split()
        if words and len(max(words, key=len)) > _LONGEST_NUMBER:
            raise ValueError
        return np.fromiter(map(float, words), np.float64, len(words))
    except (ValueError, UnicodeDecodeError, OverflowError):
        raise Damaged("something that is no number") from None
