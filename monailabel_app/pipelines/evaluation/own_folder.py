"""A folder of one evaluation alone for what its processes share; what killed evaluations left is removed.

Two evaluations with one cache may read the same model and scans at the same time, and each removes what it kept when it
is done. Whether a folder's evaluation still runs is told by a lock, which the system releases when the process dies.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has none of these locks: nothing is known of other processes there.
    fcntl = None

_LOG = logging.getLogger(__name__)
_LOCK = "alive"
# As earlier versions named theirs, without a lock and without what tells two evaluations apart.
_WITHOUT_LOCK = re.compile(r"[0-9a-f]{24}")
_held: dict[Path, BinaryIO] = {}


def claim(root: Path, name: str) -> Path:
    """A new folder below ``root`` that no other evaluation has, also none of the same model and scans.

    Raises OSError where it cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    own = f"{name}-{secrets.token_hex(6)}"
    # Found by others only with its lock held: otherwise it could be taken for a dead one's.
    hidden = root / f".{own}"
    hidden.mkdir()
    lock = (hidden / _LOCK).open("wb")
    if fcntl is not None:
        # Not on every file system; there nobody can take the folder for a dead one's either.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = hidden.rename(root / own)
    _held[folder] = lock
    return folder


def release(folder: Path) -> None:
    """Remove a folder of ``claim``; again, it does nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _held.pop(folder, None)
    if lock is not None:
        lock.close()


def remove_abandoned(root: Path) -> int:
    """Remove the folders of evaluations that were killed; returns how many."""
    gone = 0
    for folder in root.iterdir() if fcntl is not None else ():
        if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        if _WITHOUT_LOCK.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
            gone += 1
            continue
        with suppress(OSError), (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            gone += 1
    if gone:
        _LOG.info("what %d evaluations that were killed had left was removed", gone)
    return gone
