"""Embeddings of prepared scans, kept in one file so that a scan goes through the encoder once.

The file lies among the training caches and names the digests it holds as they do, so that ``purge`` of a scan removes
it, too; the other scans are embedded again, within a second each. It holds no image, id or path.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import replacing


class EmbeddingStore:
    """``cache_folder``/embeddings-<key>.safetensors. key: names the encoder. Safe to share between threads.

    Every access reads the file, so that nothing outlives its removal. What is damaged counts as not there.
    """

    def __init__(self, cache_folder: Path, key: str) -> None:
        self.file = Path(cache_folder) / f"embeddings-{key[:16]}.safetensors"
        self._lock = threading.Lock()

    def get(self, digest: str) -> np.ndarray | None:
        """(d,) float32, or None."""
        return self._read().get(digest)

    def put(self, digest: str, embedding: np.ndarray) -> None:
        """Keep an embedding. Raises TrainingFailed when the folder cannot be written."""
        with self._lock:
            held = self._read() | {digest: np.asarray(embedding, dtype=np.float32)}
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                tensors = {"embeddings": np.stack(list(held.values()))}
                with replacing(self.file) as partial:
                    save_file(tensors, str(partial), {"digests": json.dumps([*held])})
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise TrainingFailed(
                    f"expected to be able to write embeddings to the cache folder, got: {reason}; free some space or "
                    "choose another folder"
                ) from None

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with safe_open(str(self.file), framework="numpy") as handle:
                digests = json.loads((handle.metadata() or {})["digests"])
                return dict(zip(digests, handle.get_tensor("embeddings"), strict=True))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return {}
