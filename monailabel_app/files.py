"""Files that appear whole or not at all; whose a new file is, and what makes a rename last.

A file is replaced by writing a new one beside it under a name that nobody else uses, and renaming that: any reader, at
any moment, finds the old content or the new one, also when the process is killed or the disk is full. What a killed
process leaves begins with WRITING and ends with the ending of what was written, by default PARTIAL.

What a command makes that root types belongs to the user whose the folder is. A server that runs as a user of its own
could otherwise neither read the tokens nor go on with the audit log that an administrator's command has made, and
would refuse everybody.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING, PARTIAL = ".writing-", ".partial"
ABANDONED_SECONDS = 3600.0


@contextmanager
def replacing(path: str | Path, *, lasting: bool = False, ending: str = PARTIAL) -> Iterator[Path]:
    """A path to write the new content of ``path`` to; at the end of the block it takes the place of what is there.

    An error in the block, or a disk that refuses, leaves ``path`` as it is and nothing beside it. lasting: on the disk,
    name and content, when the block is over, for what somebody is told to be kept. ending: of the name to write to,
    for writers that go by it. Raises OSError.
    """
    path = Path(path)
    partial = path.with_name(f"{WRITING}{secrets.token_hex(8)}{ending}")
    try:
        yield partial
        if lasting:
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # The name that somebody knows.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if lasting:
        flush(path.parent)


def replace_file(path: str | Path, content: str | bytes, *, lasting: bool = False, private: bool = False) -> None:
    """``replacing`` for content that is at hand; text as UTF-8.

    private: readable for its owner alone, who is the folder's owner. Raises OSError.
    """
    with replacing(path, lasting=lasting) as partial:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(partial, flags, 0o600 if private else 0o666), "wb") as file:
            if private:
                give_to_owner(file.fileno(), partial.parent)
            file.write(content.encode() if isinstance(content, str) else content)


def remove_abandoned(folder: str | Path, older_than: float = ABANDONED_SECONDS) -> int:
    """Remove what killed processes have left half written in a folder, once nobody can still be writing it.

    older_than: seconds. Returns how many files; what cannot be removed stays.
    """
    gone = 0
    for partial in (path for pattern in (f"{WRITING}*", f".*{PARTIAL}") for path in Path(folder).glob(pattern)):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime >= older_than:
                partial.unlink()
                gone += 1
    return gone


def flush(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can. Raises OSError."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def give_to_owner(handle: int, folder: Path) -> None:
    """Make a file that this process has just made, and has open as ``handle``, the property of ``folder``'s owner.

    Nothing happens for other users than root. Never for a file that was there before: it could be a link to anything.
    """
    if getattr(os, "geteuid", lambda: -1)() != 0:
        return
    owner = os.stat(folder)
    if owner.st_uid != 0:
        os.fchown(handle, owner.st_uid, owner.st_gid)


def open_own(path: Path, flags: int = 0) -> int:
    """Open a file for reading and writing, readable for its owner alone; a new one is its folder's owner's.

    Returns the number of the open file. Raises OSError.
    """
    flags |= os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, 0o600)
    give_to_owner(handle, path.parent)
    return handle
