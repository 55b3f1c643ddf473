"""Sessions that somebody has signed out of: an empty file each, so that every process and the next start know of them.

A file is named by a hash of the session's identifier, which alone is worth nothing, and carries as its time the end
that the cookie has anyway. Looking for one is one question to the file system, without a lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from monailabel_app.files import WRITING, flush, give_to_owner, open_own, remove_abandoned, replacing

logger = logging.getLogger(__name__)

_MOST = 4096


class EndedSessions:
    """The ended sessions of all servers that share ``folder``; made when the first one ends.

    Where it cannot be written, this process alone knows, until it ends; the log says so.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._own: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        # Not the one above: every request asks, in the event loop, and is not to wait for the disk.
        self._writing = threading.Lock()

    def __contains__(self, session: str) -> bool:
        name = _name_of(session)
        with self._lock:
            if name in self._own:
                return True
        return os.path.lexists(self.folder / name)

    def add(self, session: str, until: float) -> None:
        """Note that a session has ended; ``until``: when its cookie is over (POSIX seconds)."""
        name = _name_of(session)
        with self._lock:
            self._own[name] = None
            while len(self._own) > _MOST:
                self._own.popitem(last=False)
        try:
            with self._writing:
                self._keep(name, until)
                self._forget()
        except OSError as error:
            logger.warning(
                "the end of a session is not kept in %s (%s): after a restart, or by another process, a copy of "
                "its cookie would be taken until it expires",
                self.folder.name, error.strerror or type(error).__name__,
            )  # fmt: skip

    def _keep(self, name: str, until: float) -> None:
        if not self.folder.is_dir():
            self._make_folder()
        # It has its name with its time: another process would take one that is of now for one that is over.
        with replacing(self.folder / name, lasting=True) as partial:
            os.close(open_own(partial))
            os.utime(partial, (until, until))

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "posix":
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                give_to_owner(handle, self.folder.parent)
            finally:
                os.close(handle)
        flush(self.folder.parent)

    def _forget(self) -> None:
        """Remove those whose cookie is over, and the ones next to that beyond what is kept."""
        remove_abandoned(self.folder)
        left = []
        for path in self.folder.iterdir():
            if not path.name.startswith(WRITING):
                with suppress(FileNotFoundError):
                    left.append((path.stat().st_mtime, path))
        left.sort()
        now = time.time()
        for number, (until, path) in enumerate(left):
            if until < now or number < len(left) - _MOST:
                path.unlink(missing_ok=True)


def _name_of(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()[:40]
