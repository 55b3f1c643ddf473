"""A bounded memory of the expensive half of a prediction, so that moving a threshold never runs the network again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from monailabel_app.types import Volume

from .analysis import Analysis


class MapCache:
    """Least recently used first out, by bytes; safe to share between threads. Holds patient data: in memory only."""

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Analysis] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Analysis | None:
        """The entry, now the most recently used one, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: str, entry: Analysis) -> None:
        """Keep an entry; older ones leave until the bound holds. One larger than the bound is not kept."""
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
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)


def analysis_key(volume: Volume, model_hash: str, settings: Mapping[str, Any]) -> str:
    """sha256 over voxels, geometry, model and the settings that change the analysis."""
    digest = hashlib.sha256(volume.digest)
    digest.update(json.dumps([model_hash, dict(settings)], sort_keys=True).encode())
    return digest.hexdigest()
