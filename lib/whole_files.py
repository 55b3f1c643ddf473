"""Files that appear whole at their places, several of them or none, also when the disk is full or the process dies.

A file is first written beside its place under a name that nobody lists (``Staged``), then renamed (``Placing``). What
a killed process leaves behind holds no lock any more, by which ``clean`` knows it. What it had put into place already,
before the table that tells of it was written, ``put_back`` takes away again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from monailabel_app.files import flush

try:
    import fcntl
except ImportError:  # Windows has none of these locks.
    fcntl = None

PREFIX = ".placing-"
JOURNAL = f"{PREFIX}journal"
Stamp = tuple[int, int, int]


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

    table: the file that tells of the others. Use it inside the lock that guards the folder, write the table as the last
    step inside it, and call ``put_back`` whenever the lock is taken: a change that was killed before is then undone.
    """

    def __init__(self, table: str | Path) -> None:
        self._back: list[tuple[Path, Path | None]] = []
        self._after: list[Path] = []
        self._table = Path(table)
        self._journal: BinaryIO | None = None

    def put(self, staged: Path, place: Path) -> None:
        """Rename ``staged`` to ``place``, over what is there."""
        self._remember(place)
        os.replace(staged, place)

    def twin(self, source: Path, place: Path) -> None:
        """The same file under a second name, without room for it where the disk knows links."""
        if os.path.lexists(place):
            raise FileExistsError(f"{place.name} is there already")
        self._note(place, None)
        try:
            os.link(source, place)
        except FileExistsError:
            self._back.pop()
            self._write(None)
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
        if self._journal is not None:
            with suppress(OSError):
                self._journal.close()
                self._table.with_name(JOURNAL).unlink(missing_ok=True)

    def _remember(self, place: Path) -> None:
        """A second name for what is there, until it is known that it is not wanted back."""
        if not place.is_file():
            self._note(place, None)
            return
        former = _fresh(place.parent)
        try:
            os.link(place, former)
        except OSError:
            shutil.copy2(place, former)
        self._note(place, former)

    def _note(self, place: Path, former: Path | None) -> None:
        """Before a step: what undoes it, here and where a later process finds it."""
        self._back.append((place, former))
        if self._journal is None:
            self._journal = self._table.with_name(JOURNAL).open("wb")
            self._write({"table": _stamp(self._table)})
        folder = self._table.parent
        self._write([os.path.relpath(path, folder) if path is not None else None for path in (place, former)])

    def _write(self, line: Any) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())


def put_back(table: str | Path) -> bool:
    """Undo the change of a process that was killed before it wrote ``table``; inside the lock. Raises OSError.

    Returns whether there was one. Killed itself, it is done again by the next one.
    """
    table = Path(table)
    journal = table.with_name(JOURNAL)
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]  # Nothing was done yet of a line that is not whole.
    except FileNotFoundError:
        return False
    try:
        head, *noted = [json.loads(line) for line in lines] or [{}]
    except ValueError:
        head, noted = {}, []  # A damaged disk; nothing can be told from it.
    undo = "table" in head and head["table"] == _stamp(table)
    steps: list[list[str | None]] = []
    for step in noted:
        steps.pop() if step is None else steps.append(step)
    for place, former in reversed(steps) if undo else ():
        if former is None:
            (table.parent / place).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):  # Put back already.
                os.replace(table.parent / former, table.parent / place)
    journal.unlink(missing_ok=True)
    return undo and bool(steps)


def table_stamp(table: Path) -> Stamp | None:
    """Tells the versions of a table's file apart: time of change (ns), size and inode; None where there is none."""
    try:
        status = table.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _stamp(table: Path) -> list[int] | None:
    """As JSON has it."""
    stamp = table_stamp(table)
    return None if stamp is None else list(stamp)


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
