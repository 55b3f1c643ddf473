"""A bounded memory of the expensive half of a prediction, so that moving a threshold never runs the network again.

Behind it there may be a second level on the disk (``analysis_store``), which outlives the process.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from monailabel_app.types import Volume

from .analysis import Analysis
from .analysis_store import AnalysisStore


class MapCache:
    """Least recently used first out, by bytes; safe to share between threads. Holds patient data.

    store: where analyses are kept, too, and looked for when they are not in memory; None for memory only.
    """

    def __init__(self, max_bytes: int = 512 * 2**20, store: AnalysisStore | None = None) -> None:
        self._max_bytes, self._store = max_bytes, store
        self._entries: OrderedDict[str, Analysis] = OrderedDict()
        self._bytes = 0
        self._hits = self._disk_hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Analysis | None:
        """The entry, now the most recently used one, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                self._hits += 1
                return entry
            self._misses += 1
        entry = self._store.get(key) if self._store is not None else None
        if entry is not None:
            with self._lock:
                self._disk_hits += 1
            self._remember(key, entry)
        return entry

    def put(self, key: str, entry: Analysis) -> None:
        """Keep an entry; older ones leave until the bound holds. One larger than the bound is not kept in memory."""
        self._remember(key, entry)
        if self._store is not None:
            self._store.put(key, entry)

    @property
    def store(self) -> AnalysisStore | None:
        """The second level; None for memory only."""
        return self._store

    def figures(self) -> dict[str, int]:
        """Entries and bytes in memory; questions that memory answered, did not, and that the disk then did."""
        with self._lock:
            return {
                "entries": len(self._entries),
                "bytes": self._bytes,
                "hits": self._hits,
                "misses": self._misses,
                "disk_hits": self._disk_hits,
            }

    def purge(self) -> None:
        """Let what is too old leave the disk; cheap, to be called now and then."""
        if self._store is not None:
            self._store.purge(now_and_then=True)

    def _remember(self, key: str, entry: Analysis) -> None:
        if entry.nbytes > self._max_bytes:
            return
        with self._lock:
            previous = self._entries.pop(key, None)
            self._bytes -= previous.nbytes if previous else 0
            self._entries[key] = entry
            self._bytes += entry.nbytes
            while self._bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Forget everything, on the disk too."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
        if self._store is not None:
            self._store.clear()

    def __len__(self) -> int:
        return len(self._entries)


def analysis_key(volume: Volume, model_hash: str, settings: Mapping[str, Any]) -> str:
    """sha256 over voxels, geometry, model and the settings that change the analysis."""
    digest = hashlib.sha256(volume.digest)
    digest.update(json.dumps([model_hash, dict(settings)], sort_keys=True).encode())
    return digest.hexdigest()
