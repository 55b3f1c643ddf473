"""What a model was trained on, in keyed hashes: ``training.json`` in the folder of each site-trained version."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_app.errors import CorruptModel
from monailabel_app.files import replace_file
from monailabel_app.types import to_json

from .site_key import fingerprint, keyed_hash, site_key

__all__ = [
    "MANIFEST",
    "Ancestor",
    "Manifest",
    "ScanRecord",
    "config_digest",
    "fingerprint",
    "keyed_hash",
    "made_here",
    "record_scans",
    "site_key",
]

MANIFEST = "training.json"
FORMAT = 1
_HASH = re.compile(r"[0-9a-f]{64}")
_OTHER = "other reasons"


@dataclass(frozen=True, order=True)
class ScanRecord:
    """One scan as keyed hashes (64 hex digits each). content: of the digest of its prepared cache entry."""

    patient: str
    scan: str
    content: str

    @classmethod
    def of(cls, key: bytes, patient: str, scan: str, content: str) -> ScanRecord:
        """From the plain ids and the prepared entry's digest."""
        return cls(
            keyed_hash(key, "patient", patient), keyed_hash(key, "scan", scan), keyed_hash(key, "content", content)
        )


@dataclass(frozen=True)
class Ancestor:
    """A model whose weights a training started from. version: as ``0002``; ``shipped``; empty for a flat folder."""

    name: str
    version: str
    hash: str

    @property
    def id(self) -> str:
        """As listings name it."""
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True)
class Manifest:
    """How and on whom one version was trained.

    config_digest: of the method's configuration (``config_digest``). settings: the training settings.
    start_from: the model whose weights training began with, None from scratch; ancestors: what that one had started
    from in turn, nearest first. train, held_out: the scans learnt from and calibrated on. inherited: hashes of the
    patients that ancestors were trained on, so that they are found even when the ancestors are gone.
    contaminated, left_out: scans not used because of a non-empty label, and for other reasons (reason -> count).
    privacy: epsilon, delta, mu, sigma, q, steps of a private training, else None. quality: held-out figures.
    date: UTC, ISO 8601. seconds: duration. run: name of the folder under runs/<name>/. site: ``fingerprint`` of the
    key it was made with.
    """

    method: str
    modality: str
    site: str
    train: tuple[ScanRecord, ...]
    held_out: tuple[ScanRecord, ...]
    preset: str = ""
    config_digest: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    start_from: Ancestor | None = None
    ancestors: tuple[Ancestor, ...] = ()
    inherited: tuple[str, ...] = ()
    contaminated: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    privacy: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    seconds: float = 0.0
    run: str = ""

    def roles(self, patient: str) -> tuple[str, ...]:
        """How a patient (keyed hash) went into this version: out of training, held_out, inherited."""
        found = {
            "training": any(scan.patient == patient for scan in self.train),
            "held_out": any(scan.patient == patient for scan in self.held_out),
            "inherited": patient in self.inherited,
        }
        return tuple(role for role, present in found.items() if present)

    def patients(self) -> set[str]:
        """Keyed hashes of everyone this version depends on, by its weights or by its thresholds."""
        return self.trained_patients() | {scan.patient for scan in self.held_out}

    def trained_patients(self) -> set[str]:
        """Keyed hashes of everyone the weights depend on: thresholds are not handed down, weights are."""
        return {scan.patient for scan in self.train} | set(self.inherited)

    def started_from(self, parent: Ancestor, manifest: Manifest | None) -> Manifest:
        """This manifest with its lineage: ``parent`` and, where it has one, the parent's manifest."""
        if manifest is None:
            return replace(self, start_from=parent, ancestors=(), inherited=())
        earlier = (manifest.start_from, *manifest.ancestors) if manifest.start_from is not None else ()
        inherited = tuple(sorted(manifest.trained_patients()))
        return replace(self, start_from=parent, ancestors=earlier, inherited=inherited)

    def write(self, folder: Path) -> Path:
        """``folder``/training.json, by rename; text that looks like a path is left out."""
        payload = {
            "format": FORMAT,
            **{name: to_json(value) for name, value in asdict(self).items()},
            "train": [asdict(scan) for scan in sorted(self.train)],
            "held_out": [asdict(scan) for scan in sorted(self.held_out)],
            "counts": _counts(self.train, self.held_out),
            "settings": _without_paths(to_json(self.settings)),
            "quality": _without_paths(to_json(self.quality)),
            "left_out": _plain_reasons(self.left_out),
            "run": Path(self.run).name,
        }
        target = Path(folder) / MANIFEST
        replace_file(target, json.dumps(payload, indent=1, sort_keys=True, allow_nan=False), lasting=True)
        return target

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a version folder. Raises CorruptModel when there is none or it is damaged."""
        folder = Path(folder)
        where = f"{folder.name}/{MANIFEST}"
        try:
            payload = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CorruptModel(f"expected the training manifest {where}, found none; restore the folder") from error
        except (OSError, ValueError) as error:
            raise CorruptModel(
                f"expected a readable {where}, got {type(error).__name__}; restore the folder"
            ) from error
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
            raise CorruptModel(f"expected {where} of format {FORMAT}, got {found!r}; restore it or update the app")
        try:
            return cls._of(payload)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptModel(
                f"expected a complete {where}, got a damaged one ({error}); restore the folder"
            ) from error

    @classmethod
    def _of(cls, payload: dict[str, Any]) -> Manifest:
        values = {name: value for name, value in payload.items() if name not in ("format", "counts")}
        for part in ("train", "held_out"):
            values[part] = tuple(ScanRecord(**scan) for scan in values[part])
        if _counts(values["train"], values["held_out"]) != payload["counts"]:
            raise ValueError("its counts differ from its lists")
        values["inherited"] = tuple(values["inherited"])
        hashes = [*values["inherited"]]
        hashes += [h for scan in (*values["train"], *values["held_out"]) for h in asdict(scan).values()]
        if not all(isinstance(text, str) and _HASH.fullmatch(text) for text in hashes):
            raise ValueError("an entry is no keyed hash")
        values["ancestors"] = tuple(Ancestor(**parent) for parent in values["ancestors"])
        if values["start_from"] is not None:
            values["start_from"] = Ancestor(**values["start_from"])
        return cls(**values)


def record_scans(key: bytes, scans: Iterable[tuple[str, str, str]]) -> tuple[ScanRecord, ...]:
    """(patient, scan id, digest of the prepared entry) of each scan as keyed hashes, sorted."""
    return tuple(sorted(ScanRecord.of(key, *scan) for scan in scans))


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of a method's plain configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode()).hexdigest()


def made_here(manifest: Manifest, key: bytes) -> bool:
    """Whether the manifest's hashes were made with this key; else it cannot be searched."""
    return manifest.site == fingerprint(key)


def _counts(train: Sequence[ScanRecord], held_out: Sequence[ScanRecord]) -> dict[str, int]:
    return {
        "train_scans": len(train),
        "train_patients": len({scan.patient for scan in train}),
        "held_out_scans": len(held_out),
        "held_out_patients": len({scan.patient for scan in held_out}),
    }


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return "(left out)" if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _plain_reasons(left_out: Mapping[str, int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason, count in left_out.items():
        name = _OTHER if "/" in str(reason) or "\\" in str(reason) else str(reason)
        counts[name] = counts.get(name, 0) + int(count)
    return counts
