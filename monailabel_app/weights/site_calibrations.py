"""Calibrations on a site's own healthy scans, kept beside a model that they never change.

For a shipped or trained model of the app they lie in its writable folder, for any other folder inside it::

    model/ddpm_t1/site_calibrations/2026-11-21-3fa2b1/   calibration.json, .safetensors, record.yaml, sha256sums.txt
    model/ddpm_t1/site_calibrations/USED-0002            one line: which one is used with version 0002
    model/ddpm_t1/site_calibrations/history.jsonl        one line per change

Each belongs to the weights and settings that it was made with, and is refused with others. A folder appears by one
rename and is never changed; what is used changes by replacing one file. A version without such a file uses the
calibration that it was published with.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import CorruptModel, PublishFailed, UnknownModel
from monailabel_app.files import WRITING, flush, replace_file

from .durable import STAGING, append_line, flush_folder, fresh_name, lock
from .model_folder import VERSIONS, is_version, model_id, seal, verify, weights_hash
from .version_layout import (
    FLAT_VERSION,
    HISTORY,
    SHIPPED,
    SHIPPED_VERSION,
    SITE_CALIBRATIONS,
    TRAINED,
    home,
    recorded_hash,
    use_file,
)

RECORD = "record.yaml"
FILES = ("calibration.json", "calibration.safetensors", RECORD)
_ID = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9a-f]{6,64}")
_LOCK, _REMOVED = ".lock", ".removed-"


@dataclass(frozen=True)
class SiteCalibration:
    """record: what it was made from. hash: of its checksum list. used: with the model asked for. fits: its weights."""

    id: str
    folder: Path
    record: Mapping[str, Any]
    hash: str
    used: bool
    fits: bool


def place(model: Path) -> tuple[Path, str]:
    """Where the site calibrations of a model folder lie, and what the folder is: ``0002``, ``shipped`` or ``flat``."""
    model = Path(os.path.abspath(model))  # links stay: what is beside the link is the app's own
    if model.parent.name == VERSIONS and is_version(model.name):
        return model.parent.parent / SITE_CALIBRATIONS, model.name
    if model.parent.name == SHIPPED:
        return home(model.parent.parent, model.name) / SITE_CALIBRATIONS, SHIPPED_VERSION
    return model / SITE_CALIBRATIONS, FLAT_VERSION


def used_id(model: Path) -> str | None:
    """The id of the site calibration that is used with a model folder; None for its own. One small file is read."""
    base, version = place(model)
    try:
        return use_file(base, version).read_text(encoding="ascii", errors="replace").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(model: Path) -> list[SiteCalibration]:
    """All site calibrations of the name, oldest first, also those of other versions; nothing is verified."""
    base, _ = place(model)
    names = sorted(name for name in os.listdir(base) if _ID.fullmatch(name)) if base.is_dir() else []
    used, weights = used_id(model), weights_hash(model)
    found = [_read(base / name, used, weights) for name in names]
    return sorted(found, key=lambda entry: str(entry.record.get("made", "")))


def of_app(root: Path) -> dict[str, list[str]]:
    """The ids of all site calibrations of an app, used or not, by the name of their model."""
    found = {}
    for base in sorted((Path(root) / TRAINED).glob(f"*/{SITE_CALIBRATIONS}")):
        ids = sorted(path.name for path in base.iterdir() if _ID.fullmatch(path.name))
        found |= {base.parent.name: ids} if ids else {}
    return found


def active(model: Path) -> SiteCalibration | None:
    """The site calibration that is used with a model folder, verified; None where the model's own is.

    Raises CorruptModel when it is missing or damaged, or was made with other weights: it never falls back silently.
    """
    wanted = used_id(model)
    return None if wanted is None else checked(model, wanted)


def checked(model: Path, calibration: str) -> SiteCalibration:
    """One site calibration, verified and made with these weights. Raises UnknownModel and CorruptModel."""
    entry = _find(model, calibration)
    verify(entry.folder, FILES)
    if not entry.fits:
        raise CorruptModel(
            f"expected a site calibration made with the weights of {model_id(Path(model))}, got {entry.id}, made with "
            f"{entry.record.get('model', 'others')} (weights {str(entry.record.get('weights', ''))[:12]}): the model "
            f"has changed since. Calibrate again, or go back to the model's own calibration: {_command(model)} --use "
            "shipped"
        )
    return entry


def new_staging(model: Path) -> Path:
    """An empty folder on the same disk to write a site calibration into before ``publish``."""
    base, _ = place(model)
    with _named_errors(model):
        base.mkdir(parents=True, exist_ok=True)
        folder = base / fresh_name()
        folder.mkdir()
    return folder


def publish(model: Path, staged: Path, record: Mapping[str, Any], *, use_it: bool) -> SiteCalibration:
    """Seal a staged calibration with its record and move it in by one rename; used from then on if ``use_it``.

    record: JSON types, no patient data; gets ``model``, ``version`` and ``made``, and ``weights`` where it does not
    say itself which ones were calibrated. Raises PublishFailed when the disk refuses.
    """
    base, version = place(model)
    made = datetime.now(timezone.utc)
    record = {
        "version": 1,
        "model": model_id(Path(model)),
        "belongs_to": version,
        "weights": weights_hash(model),
        "made": made.isoformat(timespec="seconds"),
        **record,
    }
    with _named_errors(model):
        (staged / RECORD).write_text(yaml.safe_dump(record, sort_keys=False, width=110), encoding="utf-8")
        digest = seal(staged, FILES)
        flush_folder(staged)
        with lock(base / _LOCK):
            _clean(base, keep=staged)
            name = f"{made:%Y-%m-%d}-{digest[:6]}"
            name = name if not (base / name).exists() else f"{made:%Y-%m-%d}-{digest[:32]}"
            os.rename(staged, base / name)
            flush(base)
            _record(base, "calibrate", name, version)
            if use_it:
                replace_file(use_file(base, version), f"{name}\n", lasting=True)
                _record(base, "use", name, version)
    return _find(model, name)


def use(model: Path, calibration: str) -> None:
    """Let a site calibration be used with a model folder, or its own again (``shipped``).

    Raises UnknownModel for one that is not there, CorruptModel for one that is damaged or of other weights.
    """
    base, version = place(model)
    if calibration == SHIPPED_VERSION and not base.is_dir():
        return
    if calibration != SHIPPED_VERSION:
        _find(model, calibration)  # without one there need be no folder to hold the lock
    with _named_errors(model), lock(base / _LOCK):
        if calibration == SHIPPED_VERSION:
            use_file(base, version).unlink(missing_ok=True)
            flush(base)
        else:
            checked(model, calibration)  # another process may have removed it while this one waited
            replace_file(use_file(base, version), f"{calibration}\n", lasting=True)
        _record(base, "use", calibration, version)


def remove(model: Path, calibration: str) -> None:
    """Delete a site calibration. Raises PublishFailed for one that is used with any version, UnknownModel for none."""
    base, _ = place(model)
    folder = _find(model, calibration).folder
    with _named_errors(model), lock(base / _LOCK):
        files = [file for file in base.glob("USED-*") if file.read_text().strip() == calibration]
        users = [file.name.partition("-")[2] for file in files]
        # The file of a version that was removed keeps nothing.
        users = sorted(v for v in users if not is_version(v) or (base.parent / VERSIONS / v).is_dir())
        if users:
            name = base.parent.name
            commands = [_command_for(name if version == FLAT_VERSION else f"{name}@{version}") for version in users]
            raise PublishFailed(
                f"expected a site calibration that is not used, got {calibration}, used with {', '.join(users)}; first "
                f"let another be used: {'; '.join(f'{command} --use shipped' for command in commands)}"
            )
        for file in files:
            file.unlink()
        gone = base / fresh_name(_REMOVED)
        os.rename(folder, gone)
        _record(base, "remove", calibration, "")
        shutil.rmtree(gone, ignore_errors=True)


def _find(model: Path, calibration: str) -> SiteCalibration:
    base, _ = place(model)
    if not _ID.fullmatch(calibration) or not (base / calibration).is_dir():
        there_is = ", ".join(entry.id for entry in listed(model)) or "none yet"
        raise UnknownModel(
            f"expected a site calibration of {model_id(Path(model))} out of {there_is}, got {calibration[:80]!r}; see: "
            f"{_command(model)} --list"
        )
    return _read(base / calibration, used_id(model), weights_hash(model))


def _read(folder: Path, used: str | None, weights: str) -> SiteCalibration:
    try:
        record = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        record = {}
    record = record if isinstance(record, Mapping) else {}
    fits = record.get("weights") == weights
    return SiteCalibration(folder.name, folder, record, recorded_hash(folder), folder.name == used, fits)


def _record(base: Path, action: str, calibration: str, version: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"time": now, "action": action, "calibration": calibration, "with": version}
    append_line(base / HISTORY, json.dumps(entry))


def _clean(base: Path, keep: Path) -> None:
    """Delete what killed processes left half removed or half written, the latter when it is older than a day."""
    limit = datetime.now(timezone.utc).timestamp() - 24 * 3600
    for path in base.iterdir():
        stale = path.name.startswith((STAGING, WRITING)) and path != keep and path.stat().st_mtime < limit
        if path.name.startswith(_REMOVED) or stale:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _command(model: Path) -> str:
    return _command_for(model_id(Path(model)))


def _command_for(model: str) -> str:
    return f"python main.py calibrate --model {model}"


@contextmanager
def _named_errors(model: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PublishFailed(
            f"expected to write the site calibrations of {model_id(Path(model))} beside {TRAINED}/, the disk refused "
            f"({error.strerror}); nothing has changed; make room or mend the permissions, then try again"
        ) from error
