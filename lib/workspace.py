"""A folder for temporary files of this process alone, which the next one removes where this one was killed.

Uploads, labels on their way and images of results lie there for moments. A process that ends by itself takes its files
with it; one that is killed cannot, and they are patients' scans. Whether a folder's process still lives is told by a
lock, which the system releases when the process dies.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has none of these locks: nothing is known of other processes there.
    fcntl = None

logger = logging.getLogger(__name__)

PREFIX, _LOCK = "anomaly_server_", "alive"
_held: BinaryIO | None = None


def own_temporary_folder(server: bool) -> bool:
    """From now on everything temporary of this process lies in a folder of its own; what dead ones left is removed.

    Of a server, and of the processes that MONAI Label starts beside it; in any other program nothing is changed.
    Returns ``server``.
    """
    if _held is None and fcntl is not None and (server or _is_beside_server()):
        _move_in()
    return server


def _is_beside_server() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "monailabel.interfaces.utils.app"


def _move_in() -> None:
    global _held
    try:
        root = Path(tempfile.gettempdir())
        gone = remove_abandoned(root)
        # Found by others only with its lock held: otherwise it could be taken for a dead one's.
        folder = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
        _held = (folder / _LOCK).open("wb")
        fcntl.flock(_held, fcntl.LOCK_EX)
        folder = folder.rename(root / folder.name.removeprefix("."))
    except OSError as error:
        logger.warning("no folder of its own for temporary files: %s", type(error).__name__)
        return
    if gone:
        logger.warning("temporary files of %d processes that were killed have been removed", gone)
    tempfile.tempdir = str(folder)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


def remove_abandoned(root: Path) -> int:
    """Remove the folders in ``root`` whose processes are dead; returns how many. Those of other users stay."""
    gone = 0
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.lstat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
    return gone
