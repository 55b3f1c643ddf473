"""How much of somebody else's DICOM is read: so many bytes before the pixels, and so many elements, however nested.

Without it a file of a megabyte that is nothing but elements takes a gigabyte when it is read, one of sequences within
sequences ends the interpreter's patience, and a deflated one grows a thousandfold.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from monailabel_app.errors import UnreadableVolume

# What may stand before the pixels; scanners write some hundred thousand bytes of their own there.
MAX_HEADER = 32 * 2**20
MAX_READS = 100_000  # two or three for an element
# Of a header that describes each frame of thousands, or of compressed pixels, which are read a few kilobytes at a time.
MAX_READS_OF_FRAMES = 1_000_000
_NEXT = 16  # where an element could begin, which is looked for at the end


class Bounded:
    """The beginning of a file: what reads further than ``longest`` bytes or more often is told that the file ends."""

    def __init__(self, file: BinaryIO, longest: int = MAX_HEADER, reads: int = MAX_READS):
        self._file, self._longest, self._left = file, longest, reads
        self.seek, self.tell = file.seek, file.tell
        self.exceeded = False

    def read(self, size: int = -1) -> bytes:
        """As of a file. Raises EOFError."""
        left = self._longest - self._file.tell()
        self._left -= 1
        if size < 0 or size > left or self._left < 0:
            self.exceeded = True
            raise EOFError
        return self._file.read(size)


def read_header(path: str | Path) -> Dataset:
    """All that stands before the pixels. Raises InvalidDicomError, OSError, UnreadableVolume (see ``read_bounded``)."""
    with open(path, "rb") as file:
        return read_bounded(file, MAX_HEADER, pixels=False)


def read_bounded(file: BinaryIO, longest: int, pixels: bool = True) -> Dataset:
    """A DICOM object of at most ``longest`` bytes, read from its start.

    Raises InvalidDicomError for what is none, UnreadableVolume for one that is longer, deflated, damaged, of too many
    elements or nested too deep.
    """
    bounded = Bounded(file, longest + _NEXT, MAX_READS_OF_FRAMES)
    try:
        dataset = pydicom.dcmread(bounded, stop_before_pixels=not pixels)
    except (InvalidDicomError, OSError):
        raise
    except Exception as error:
        # Not a list of kinds: what a parser of other people's bytes raises is open-ended, and each means the same.
        raise UnreadableVolume(_EXPECTED) from error
    if bounded.exceeded:
        # pydicom takes the end of a file for the end of the object.
        raise UnreadableVolume(_EXPECTED)
    return dataset


_EXPECTED = (
    f"expected a DICOM object with at most {MAX_HEADER // 2**20} MiB and {MAX_READS_OF_FRAMES // 2000} thousand "
    "elements before its pixels, not deflated, got a longer, deflated or damaged one: export it again, uncompressed"
)
