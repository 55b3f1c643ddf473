"""Prepared scans on disk: one file per scan, named by the content it was made from, and an index by file bytes.

The files hold brains, so they are patient data, but no id, name or path. Each is renamed into place whole: programs
that write the same scan at once do each other no harm, and what is damaged counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import ABANDONED_SECONDS, remove_abandoned, replacing
from monailabel_app.types import PreparedVolume

VERSION = 1


@dataclass(frozen=True)
class StoredScan:
    """image: (X, Y, Z) uint8, intensity x 255. brain_mask: (X, Y, Z) bool. steps: the record of what was done."""

    image: np.ndarray
    brain_mask: np.ndarray
    steps: tuple[dict, ...]
    warnings: tuple[str, ...]


class PreparedStore:
    """The folder ``cache_folder``/prepared; made when first written to."""

    def __init__(self, cache_folder: Path) -> None:
        self.folder = Path(cache_folder) / "prepared"
        self._index = self.folder / "index"

    def path(self, digest: str) -> Path:
        """Where a scan is or would be."""
        return self.folder / f"{digest}.safetensors"

    def read(self, digest: str) -> StoredScan | None:
        """The scan of that digest; None when it is absent, cut short, changed or of another version."""
        try:
            with safe_open(str(self.path(digest)), framework="pt") as handle:
                header = handle.metadata() or {}
                image, packed = handle.get_tensor("image").numpy(), handle.get_tensor("brain_mask").numpy()
            if header.get("checksum") != _checksum(image, packed, header["record"]):
                return None
            record = json.loads(header["record"])
            if record["version"] != VERSION:
                return None
            bits = np.unpackbits(packed, count=image.size).reshape(image.shape)
            return StoredScan(image, bits.astype(bool), tuple(record["steps"]), tuple(record["warnings"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None

    def write(self, digest: str, prepared: PreparedVolume, *, warnings: Sequence[str] = ()) -> None:
        """Keep a prepared scan. Raises TrainingFailed when the folder cannot be written."""
        image = np.ascontiguousarray(np.round(prepared.image[0] * 255).astype(np.uint8))
        packed = np.packbits(prepared.brain_mask.reshape(-1))
        record = json.dumps(
            {"version": VERSION, "steps": list(prepared.steps), "warnings": list(warnings)}, sort_keys=True
        )
        tensors = {"image": torch.from_numpy(image), "brain_mask": torch.from_numpy(packed)}
        header = {"record": record, "checksum": _checksum(image, packed, record)}
        self._write(self.path(digest), lambda partial: save_file(tensors, str(partial), header))

    def digest_of(self, key: str) -> str | None:
        """The digest remembered for ``key``; None where there is none or it is no digest."""
        try:
            digest = (self._index / key).read_text(errors="replace")
        except OSError:
            return None
        return digest if len(digest) == 64 and not set(digest) - set("0123456789abcdef") else None

    def remember(self, key: str, digest: str) -> None:
        """Note that files of the hash ``key`` give the scan ``digest``, so that they need not be decoded again."""
        self._write(self._index / key, lambda partial: partial.write_text(digest))

    def remove_abandoned(self, older_than: float = ABANDONED_SECONDS) -> None:
        """Delete what killed programs left half written, once nobody can still be writing it."""
        for folder in (self.folder, self._index):
            remove_abandoned(folder, older_than)

    def remove(self, digests: Iterable[str]) -> int:
        """Delete scans and all that points to them; returns how many scans there were."""
        gone = set(digests)
        removed = 0
        for digest in gone:
            path = self.path(digest)
            removed += path.is_file()
            path.unlink(missing_ok=True)
        for entry in list(self._index.iterdir()) if self._index.is_dir() else []:
            if self.digest_of(entry.name) in gone:
                entry.unlink(missing_ok=True)
        self.remove_abandoned()
        return removed

    def _write(self, path: Path, save: Callable[[Path], object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save(partial)
        # safetensors reports a full disk as its own error.
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise TrainingFailed(
                f"expected to be able to write prepared scans to the cache folder, got: {reason}; free some space or "
                "choose another folder"
            ) from None


def purge(cache_folder: Path, digests: Iterable[str]) -> int:
    """Remove scans from a cache for good: their own files, and the training caches put together from them.

    Returns the number of prepared scans that were there. The other scans of such a training cache are kept, each in
    its own file, from which it is put together again when needed.
    """
    gone = set(digests)
    for path in Path(cache_folder).glob("*.safetensors"):
        try:
            with safe_open(str(path), framework="pt") as handle:
                held = set(json.loads((handle.metadata() or {}).get("digests", "[]")))
        except (OSError, SafetensorError, ValueError):
            continue
        if held & gone:
            path.unlink(missing_ok=True)
    return PreparedStore(cache_folder).remove(gone)


def _checksum(image: np.ndarray, packed: np.ndarray, record: str) -> str:
    """Over everything a file holds: safetensors itself notices a cut file, but not a changed byte."""
    digest = hashlib.sha256(record.encode())
    digest.update(json.dumps(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    digest.update(np.ascontiguousarray(packed).tobytes())
    return digest.hexdigest()
