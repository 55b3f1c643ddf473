"""Which models an app has, and which folder serves under each name: what the command line and the server list.

Only CURRENT and config.yaml are read, nothing is hashed, so that listing is cheap; what is listed is verified when it
is loaded. A trained model replaces a shipped namesake.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import CorruptModel

from .model_folder import CONFIG, SUMS, VERSIONS, model_id, result_hash
from .version_layout import (
    CURRENT,
    FLAT_VERSION,
    HISTORY,
    SHIPPED,
    SHIPPED_VERSION,
    SITE_CALIBRATIONS,
    TRAINED,
    current,
    history,
    home,
    is_model_name,
    recorded_hash,
    version_of,
)

logger = logging.getLogger(__name__)

KIND = "anomaly"
TRAINING, CALIBRATION = "training.json", "calibration.json"
Fingerprint = tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class ModelEntry:
    """A model as its ``config.yaml`` describes it.

    name: what the viewers call it, whichever version serves. folder: of that version. method: id in the registry,
    such as ``ddpm``. version: ``0002``, ``shipped``, or empty for a flat folder.
    """

    name: str
    folder: Path
    method: str
    config: Mapping[str, Any]
    version: str = ""

    @property
    def id(self) -> str:
        """The model id in results: ``ddpm_t1@0002``, or the name of a shipped or flat folder."""
        return model_id(self.folder)

    @property
    def hash(self) -> str:
        """As recorded in the checksum list; the files are not read."""
        return recorded_hash(self.folder)

    @property
    def calibrated(self) -> bool:
        """Whether there are thresholds: without them nothing can be marked."""
        return (self.folder / CALIBRATION).is_file()

    @property
    def modality(self) -> str:
        """The sequence the model was trained on, such as ``t1``."""
        return str(self.config.get("modality") or "unknown")

    @property
    def training_data(self) -> str:
        """Name and licence of the healthy scans, in words; empty when the folder does not say."""
        data = self.config.get("training_data") or self.config.get("data") or ""
        if isinstance(data, Mapping):
            data = ", ".join(str(data[key]) for key in ("name", "licence", "license") if data.get(key))
        return str(data)

    @property
    def quality(self) -> float | None:
        """Mean average precision on lesions implanted into held-out healthy scans, where a training recorded it."""
        recorded = training_record(self.folder).get("quality") or self.config.get("quality")
        value = recorded.get("mean_ap") if isinstance(recorded, Mapping) else recorded
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def list_models(root: str | Path) -> dict[str, ModelEntry]:
    """What serves under each name; shipped names first. What cannot be read is left out, which is logged."""
    root, entries = Path(root), {}
    for name in _names(root):
        try:
            folder = current(root, name)
        except (CorruptModel, OSError) as error:
            logger.warning("model %s is left out: %s", name, error)
            continue
        entry = read_entry(name, folder, version_of(root, name, folder)) if folder is not None else None
        if entry is not None:
            entries[name] = entry
    return entries


def read_entry(name: str, folder: Path, version: str = "") -> ModelEntry | None:
    """The anomaly model in a folder; None when it holds something else or cannot be read (which is logged)."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        # Not only YAML's own: a date that there is not, or thousands of levels, come as Python's errors.
        logger.warning("model %s is left out: its config.yaml cannot be read (%s)", name, type(error).__name__)
        return None
    if not isinstance(config, Mapping) or config.get("kind") != KIND:
        return None
    return ModelEntry(name, folder, str(config.get("method") or ""), config, version)


def made_of(root: str | Path, folder: Path) -> list[str]:
    """Names of the models that combine the one in ``folder``, and could not be loaded without it."""
    if not (folder / SUMS).is_file():
        return []
    digest, found = result_hash(folder), []
    for name, entry in list_models(root).items():
        config = entry.config.get("config")
        hashes = config.get("hashes") if isinstance(config, Mapping) else None
        if isinstance(hashes, list) and digest in hashes:
            found.append(name)
    return found


def fingerprint(root: str | Path) -> Fingerprint:
    """Changes whenever ``list_models`` could give something else, or another site calibration is used.

    A few file dates; no file but CURRENT is read.

    Asked for at every request of a server, so in plain strings: paths as objects take most of the time.
    """
    marks: list[tuple[object, ...]] = []
    for name in _names(Path(root), warn=False):
        base, shipped = f"{root}/{TRAINED}/{name}", f"{root}/{SHIPPED}/{name}"
        text = _read(f"{base}/{CURRENT}")
        if text in (None, SHIPPED_VERSION):
            folders = [shipped] if text else [base, shipped]
            labels = [SHIPPED_VERSION] if text else [FLAT_VERSION, SHIPPED_VERSION]
        else:
            folders, labels = [f"{base}/{VERSIONS}/{text}"], [text]
        stamps = [_stamp(f"{folder}/{file}") for folder in folders for file in (CONFIG, CALIBRATION)]
        stamps += [_stamp(f"{base}/{SITE_CALIBRATIONS}/USED-{label}") for label in labels]
        marks.append((name, text, *stamps))
    return tuple(marks)


def trained_names(root: str | Path) -> set[str]:
    """Models that were published here by a training, whether or not one of their versions serves."""
    return {name for name in _folders(Path(root) / TRAINED) if (home(Path(root), name) / HISTORY).is_file()}


def published(root: str | Path, entry: ModelEntry) -> str:
    """When the version was published (UTC, ISO 8601), else when its config.yaml was written."""
    if entry.version not in ("", SHIPPED_VERSION):
        for change in history(Path(root), entry.name):
            if change.get("version") == entry.version and change.get("action") in {"publish", "adopt"}:
                return str(change.get("time", ""))
    written = (entry.folder / CONFIG).stat().st_mtime
    return datetime.fromtimestamp(written, timezone.utc).isoformat(timespec="seconds")


def training_record(folder: Path) -> Mapping[str, Any]:
    """The training manifest as it was written; empty where there is none that can be read."""
    try:
        record = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, Mapping) else {}


def _names(root: Path, *, warn: bool = True) -> list[str]:
    """Names of all folders that can be models, shipped ones first."""
    names = dict.fromkeys([*_folders(root / SHIPPED), *_folders(root / TRAINED)])
    refused = [name for name in names if not is_model_name(name)]
    for name in refused if warn else ():
        if any((root / parent / name / CONFIG).is_file() for parent in (SHIPPED, TRAINED)):
            logger.warning("model folder %r is left out: its name needs letters, digits, '.', '_' or '-'", name)
    return [name for name in names if name not in refused]


def _folders(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as found:
            return sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(file: str) -> str | None:
    try:
        with open(file, encoding="ascii", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return None


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(file)
    except (OSError, ValueError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
