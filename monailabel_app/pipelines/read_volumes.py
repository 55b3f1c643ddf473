"""A bounded memory of scans that were read, so that a second look at one does not unpack its file again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from monailabel_app.io.images import read_volume
from monailabel_app.types import Volume

_Stamp = tuple[tuple[str, int, int, int], ...]


class ReadVolumes:
    """Least recently used first out, by bytes; safe to share between threads. Holds patient data: in memory only.

    A scan is told by its path and the dates, sizes and numbers of its files, and read anew when one differs.
    """

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[_Stamp, Volume]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, path: str | Path) -> Volume:
        """The scan in a file or folder, single slices too; nobody may change it. Raises what ``read_volume`` raises."""
        name, stamp = str(path), _stamp(Path(path))
        with self._lock:
            held = self._held.get(name)
            if held is not None and held[0] == stamp:
                self._held.move_to_end(name)
                self._hits += 1
                return held[1]
            self._misses += 1
        volume = read_volume(path, slices=True)
        # Read while somebody wrote: not to be taken for the file that is there now.
        if stamp and stamp == _stamp(Path(path)) and volume.data.nbytes <= self._max_bytes:
            self._keep(name, stamp, volume)
        return volume

    def figures(self) -> dict[str, int]:
        """Scans and bytes held; questions that were answered from memory, and that were not."""
        with self._lock:
            return {"entries": len(self._held), "bytes": self._bytes, "hits": self._hits, "misses": self._misses}

    def _keep(self, name: str, stamp: _Stamp, volume: Volume) -> None:
        volume.data.setflags(write=False)
        with self._lock:
            former = self._held.pop(name, None)
            self._bytes += volume.data.nbytes - (former[1].data.nbytes if former else 0)
            self._held[name] = (stamp, volume)
            while self._bytes > self._max_bytes:
                _, (_, dropped) = self._held.popitem(last=False)
                self._bytes -= dropped.data.nbytes


def _stamp(path: Path) -> _Stamp:
    """Empty where there is nothing."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, status.st_mtime_ns, status.st_size, status.st_ino) for name, status in found)
