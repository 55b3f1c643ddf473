"""Names, lines and folders that outlive a power cut, and a lock that dies with its process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monailabel_app.files import flush

try:
    import fcntl
except ImportError:  # Windows has none of these locks.
    fcntl = None

STAGING = ".staging-"


def fresh_name(prefix: str = STAGING) -> str:
    """A name that no other process uses."""
    return f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def append_line(file: Path, line: str) -> None:
    """Add a line at the end; the torn end of an earlier one, cut off by a power cut, is closed first."""
    with file.open("ab+") as handle:
        end, torn = handle.seek(0, os.SEEK_END), False
        if end:
            handle.seek(end - 1)
            torn = handle.read(1) != b"\n"
        handle.write((("\n" if torn else "") + line + "\n").encode())
        handle.flush()
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Make every file below a folder, and the folder itself, last through a power cut, where the system can."""
    if os.name != "posix":
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    flush(folder)


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold a file against other processes; they wait. The system releases it when this process dies."""
    with file.open("a") as handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
