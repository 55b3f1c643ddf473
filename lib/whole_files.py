"""Files that appear whole at their places, several of them or none, also when the disk is full or the process dies.

A file is first written beside its place under a name that nobody lists (``Staged``), then renamed (``Placing``). What
a killed process leaves behind holds no lock any more, by which ``clean`` knows it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO

from monailabel_app.files import flush

try:
    import fcntl
except ImportError:  # Windows has none of these locks.
    fcntl = None

PREFIX = ".placing-"


class Staged(AbstractContextManager):
    """A copy of ``source`` on the disk of ``folder``, locked while this process lives; gone at the end unless placed.

    Raises OSError, and then there is nothing.
    """

    def __init__(self, source: str | Path, folder: str | Path):
        self.path = _fresh(Path(folder))
        self._file: BinaryIO = self.path.open("xb")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX)
            with open(source, "rb") as content:
                shutil.copyfileobj(content, self._file, 1 << 20)
            shutil.copymode(source, self.path)
            self._file.flush()
            os.fsync(self._file.fileno())
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            # With what could not be written in its memory, closing fails as writing did.
            with suppress(OSError):
                self._file.close()
        finally:
            # What has been placed already is not taken back for what could not be tidied up.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


class Placing(AbstractContextManager):
    """The files of one change; an error inside puts all of them back as they were.

    Use it inside the lock that guards the folder, and write the table as the last step inside it.
    """

    def __init__(self) -> None:
        self._back: list[tuple[Path, Path | None]] = []
        self._after: list[Path] = []

    def put(self, staged: Path, place: Path) -> None:
        """Rename ``staged`` to ``place``, over what is there."""
        self._remember(place)
        os.replace(staged, place)

    def twin(self, source: Path, place: Path) -> None:
        """The same file under a second name, without room for it where the disk knows links."""
        self._back.append((place, None))
        try:
            os.link(source, place)
        except FileExistsError:
            self._back.pop()
            raise
        except OSError:
            with Staged(source, place.parent) as copy:
                os.replace(copy.path, place)

    def remove(self, path: Path) -> None:
        """Take a file away now."""
        self._remember(path)
        path.unlink()

    def remove_after(self, path: Path) -> None:
        """Take a file away once everything else has succeeded."""
        self._after.append(path)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        folders = {place.parent for place, _ in self._back}
        if kind is not None:
            for place, former in reversed(self._back):
                with suppress(OSError):
                    place.unlink(missing_ok=True) if former is None else os.replace(former, place)
        for _, former in self._back:
            if former is not None:
                with suppress(OSError):
                    former.unlink(missing_ok=True)
        for path in self._after if kind is None else ():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if kind is None:
            for folder in folders:
                with suppress(OSError):
                    flush(folder)

    def _remember(self, place: Path) -> None:
        """A second name for what is there, until it is known that it is not wanted back."""
        if not place.is_file():
            self._back.append((place, None))
            return
        former = _fresh(place.parent)
        try:
            os.link(place, former)
        except OSError:
            shutil.copy2(place, former)
        self._back.append((place, former))


def clean(folder: Path) -> int:
    """Remove what killed processes have left in ``folder``; returns how many files. Use it inside the folder's lock."""
    gone = 0
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError), path.open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            gone += 1
    return gone


def _fresh(folder: Path) -> Path:
    # Without the extension of an image: the folder's readers take every file with one for an image.
    return folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
