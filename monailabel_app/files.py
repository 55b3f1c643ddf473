"""Whose a new file is, and what makes a rename last.

What a command makes that root types belongs to the user whose the folder is. A server that runs as a user of its own
could otherwise neither read the tokens nor go on with the audit log that an administrator's command has made, and
would refuse everybody.
"""

from __future__ import annotations

import os
from pathlib import Path


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
