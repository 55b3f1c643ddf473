"""Finding and removing what has become old below a folder, without ever leaving it.

Every step down goes through the folder's own handle and refuses links, so that a link that somebody puts into a cache,
before or during the removal, is at most removed itself; what it points to is never looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SUPPORTED = {os.open, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd and os.scandir in os.supports_fd
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_MOST_DEPTH = 32


@dataclass(frozen=True)
class Unit:
    """Something that is removed as a whole. where: its names below the folder. time: of its newest part (s).

    files: (device, number) of its regular files.
    """

    where: tuple[str, ...]
    folder: bool
    time: float
    size: int
    count: int
    files: frozenset[tuple[int, int]] = field(repr=False)


@dataclass(frozen=True)
class Wanted:
    """What units there are. pattern: of their paths below the folder, with slashes, as a whole.

    whole: folders that match are units, with all that is in them; otherwise only files are. depth: how far down it is
    looked. by_use: the time of reading counts, too.
    """

    pattern: re.Pattern[str]
    whole: bool = False
    depth: int = _MOST_DEPTH
    by_use: bool = False


def units(root: Path, wanted: Wanted, *, most: int = 100_000) -> Iterator[Unit]:
    """What is wanted below ``root``. Links are no units and are not followed. most: entries that are looked at."""
    try:
        # The folder itself may be a link that its owner made; nothing below it may.
        handle = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return
    budget = [most]
    try:
        yield from _below(handle, (), wanted, budget)
    finally:
        os.close(handle)


def remove(root: Path, unit: Unit, *, before: float, by_use: bool = False) -> bool:
    """Remove a unit unless it has changed since. Returns whether it is gone. Raises OSError where it may not be.

    before: it must not be younger (s).
    """
    with _folder_of(root, unit.where[:-1]) as parent:
        if parent is None:
            return True
        name = unit.where[-1]
        now = _look(parent, name, (), by_use, [10**9])
        if now is None:
            return True
        if now.time > before or now.folder != unit.folder:
            return False
        if now.folder:
            _remove_folder(parent, name, 0)
        else:
            os.unlink(name, dir_fd=parent)
        return True


def open_files() -> Collection[tuple[int, int]]:
    """Device and number of every file that a process has open, as far as this one may know (Linux)."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    status = descriptor.stat()
                    if stat.S_ISREG(status.st_mode):
                        found.add((status.st_dev, status.st_ino))
    return found


def _below(handle: int, where: tuple[str, ...], wanted: Wanted, budget: list[int]) -> Iterator[Unit]:
    with os.scandir(handle) as entries:
        names = sorted(entry.name for entry in entries if not entry.is_symlink())
    for name in names:
        budget[0] -= 1
        if budget[0] < 0:
            return
        path = (*where, name)
        inner = None
        if wanted.pattern.fullmatch("/".join(path)):
            inner = None if wanted.whole else _opened(handle, name)
            unit = _look(handle, name, where, wanted.by_use, budget) if inner is None else None
            if unit is not None:
                yield unit
        elif len(path) < wanted.depth:
            inner = _opened(handle, name)
        if inner is not None:
            try:
                yield from _below(inner, path, wanted, budget)
            finally:
                os.close(inner)


def _look(parent: int, name: str, where: tuple[str, ...], by_use: bool, budget: list[int]) -> Unit | None:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        time = max(status.st_mtime, status.st_atime) if by_use else status.st_mtime
        files = frozenset({(status.st_dev, status.st_ino)})
        return Unit((*where, name), False, time, status.st_size, 1, files)
    if not stat.S_ISDIR(status.st_mode):
        return None
    inner = _opened(parent, name)
    if inner is None:
        return None
    # Not the time of reading: listing a folder reads it.
    time, size, count, files = status.st_mtime, 0, 0, set()
    try:
        with os.scandir(inner) as entries:
            names = [entry.name for entry in entries]
        for entry in names:
            budget[0] -= 1
            part = _look(inner, entry, (), by_use, budget)
            if part is not None:
                time, size, count = max(time, part.time), size + part.size, count + part.count
                files |= part.files
    finally:
        os.close(inner)
    return Unit((*where, name), True, time, size, count, frozenset(files))


def _opened(parent: int, name: str) -> int | None:
    """A handle of a folder; None for a link, for what is no folder, and for what is not ours to see."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError:
        return None


@contextmanager
def _folder_of(root: Path, where: tuple[str, ...]) -> Iterator[int | None]:
    try:
        handle: int | None = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except FileNotFoundError:
        handle = None
    try:
        for name in where:
            if handle is None:
                break
            inner = _opened(handle, name)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _remove_folder(parent: int, name: str, depth: int) -> None:
    inner = os.open(name, _FOLDER, dir_fd=parent)
    try:
        with os.scandir(inner) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for entry, is_folder in listed:
            if is_folder and depth < _MOST_DEPTH:
                _remove_folder(inner, entry, depth + 1)
            else:
                os.unlink(entry, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=parent)
