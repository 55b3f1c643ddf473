"""Models of this site whose scans have since been found abnormal.

A scan that a model was trained or calibrated on may get a final label later that is not empty. Then the model knows
that abnormality as healthy. Which scans a version has seen is in its training manifest, as keyed hashes; scans found
abnormal are kept the same way in ``model/contaminated.json``, so that the knowledge outlives the removal of a scan.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from monailabel_app.errors import AnomalyAppError
from monailabel_app.files import replace_file
from monailabel_app.training.manifest import MANIFEST, Manifest, keyed_hash, made_here, site_key

logger = logging.getLogger(__name__)

RECORD = "contaminated.json"


@dataclass(frozen=True)
class Seen:
    """How many abnormal scans a model has learnt from, and how many its thresholds rest on."""

    trained: int = 0
    held_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.trained or self.held_out)

    def __str__(self) -> str:
        parts = [(self.trained, "it was trained on"), (self.held_out, "it was calibrated on")]
        scans = " and ".join(f"{count} of the scans {what}" for count, what in parts if count)
        return f"{scans} carried a final label that is not empty afterwards"


class Contamination:
    """Knows the manifests below ``root``/model, and the abnormal scans."""

    def __init__(self, root: str | Path):
        self._root = Path(root)
        self._changes = threading.Lock()

    def note(self, scan: str, abnormal: bool) -> dict[str, Seen]:
        """Record what a final label says of a scan. Returns the models (name@version) that have seen it, if abnormal.

        Nothing is written for a scan that no model has seen.
        """
        key = self._key()
        if key is None:
            return {}
        digest = keyed_hash(key, "scan", scan)
        with self._changes:
            known = self._recorded()
            seen = self._seen({digest}, key) if abnormal else {}
            if seen and digest not in known:
                self._write(known | {digest})
            elif not abnormal and digest in known:
                self._write(known - {digest})
        return seen

    def of_folder(self, folder: str | Path, abnormal: Iterable[str] = ()) -> Seen:
        """For the model in ``folder``: the recorded scans, and those of ``abnormal`` (ids) beside them."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            return Seen()
        key = self._key()
        if key is None:
            return Seen()
        digests = self._recorded() | {_digest(key, scan) for scan in abnormal}
        return _count(path, digests, key)

    def learnt_from(self, folder: str | Path, scans: Iterable[str]) -> set[str]:
        """Which of ``scans`` (ids) the model in ``folder`` was trained or calibrated on."""
        path, key = Path(folder) / MANIFEST, self._key()
        if key is None or not path.is_file():
            return set()
        return {scan for scan in scans if _count(path, {_digest(key, scan)}, key)}

    def _seen(self, digests: set[str], key: bytes) -> dict[str, Seen]:
        found = {}
        for path in self._manifests():
            count = _count(path, digests, key)
            if count:
                name, *below = path.parent.relative_to(self._root / "model").parts
                found[f"{name}@{below[-1]}" if below else name] = count
        return found

    def _manifests(self) -> list[Path]:
        model = self._root / "model"
        return sorted([*model.glob(f"*/{MANIFEST}"), *model.glob(f"*/versions/[0-9]*/{MANIFEST}")])

    def _key(self) -> bytes | None:
        """The site's key; not drawn here, for without one nothing was trained yet."""
        if not (self._root / "model" / "site.key").is_file():
            return None
        try:
            return site_key(self._root)
        except AnomalyAppError as error:
            logger.warning("training manifests cannot be searched: %s", error)
            return None

    def _recorded(self) -> set[str]:
        path = self._root / "model" / RECORD
        try:
            status = path.stat()
            return set(_read(path, status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("model/%s cannot be read (%s)", RECORD, type(error).__name__)
            return set()

    def _write(self, digests: set[str]) -> None:
        path = self._root / "model" / RECORD
        try:
            replace_file(path, json.dumps({"format": 1, "scans": sorted(digests)}, indent=1), lasting=True)
        except OSError as error:
            logger.warning("model/%s cannot be written (%s)", RECORD, type(error).__name__)


def _count(path: Path, digests: set[str], key: bytes) -> Seen:
    try:
        trained, held_out = _hashes(path, path.stat().st_mtime_ns, key)
    except (AnomalyAppError, OSError) as error:
        logger.warning("a training manifest cannot be read (%s)", type(error).__name__)
        return Seen()
    return Seen(len(trained & digests), len(held_out & digests))


@lru_cache(maxsize=64)
def _hashes(path: Path, modified: int, key: bytes) -> tuple[frozenset[str], frozenset[str]]:
    manifest = Manifest.read(path.parent)
    if not made_here(manifest, key):
        return frozenset(), frozenset()
    return frozenset(s.scan for s in manifest.train), frozenset(s.scan for s in manifest.held_out)


@lru_cache(maxsize=2)
def _read(path: Path, modified: int, size: int) -> tuple[str, ...]:
    return tuple(str(digest) for digest in json.loads(path.read_text(encoding="utf-8"))["scans"])


@lru_cache(maxsize=65536)
def _digest(key: bytes, scan: str) -> str:
    return keyed_hash(key, "scan", scan)
