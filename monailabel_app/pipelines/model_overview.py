"""What ``models list``, ``show`` and ``verify`` tell: names, versions, history, and whether every file is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import CorruptModel, UnknownModel
from monailabel_app.types import to_json
from monailabel_app.weights import site_calibrations
from monailabel_app.weights.listing import (
    ModelEntry,
    list_models,
    published,
    read_entry,
    trained_names,
    training_record,
)
from monailabel_app.weights.model_folder import CARD, CONFIG, SUMS, model_id, verify
from monailabel_app.weights.version_layout import (
    SHIPPED,
    TRAINED,
    current,
    history,
    home,
    is_model_name,
    locate,
    shipped_folder,
    split_id,
    version_of,
    versions,
)

_HASH = re.compile(r"[0-9a-f]{32,}")


def overview(root: Path) -> list[dict[str, Any]]:
    """One record per model: what serves, and all versions. Nothing is hashed. JSON types only."""
    serving = list_models(root)
    records = []
    for name in [*serving, *sorted(trained_names(root) - serving.keys())]:
        entry = serving.get(name)
        described = _describe(root, entry) if entry is not None else {"version": "none", "fault": _fault(root, name)}
        records.append({"name": name, **described, "versions": [_version(root, v) for v in versions(root, name)]})
    return to_json(records)


def details(root: Path, model: str) -> dict[str, Any]:
    """Everything about ``NAME`` (what serves) or ``NAME@VERSION``. JSON types only; nothing that names a patient.

    Raises UnknownModel and CorruptModel.
    """
    name, version = split_id(model)
    folder = locate(root, name, version)
    serves = _current(root, name) == folder
    entry = read_entry(name, folder, version_of(root, name, folder))
    if entry is None:
        raise CorruptModel(f"expected a readable config.yaml of an anomaly model in {model_id(folder)}; restore it")
    card = folder / CARD
    return to_json(
        {
            "name": name,
            **_describe(root, entry),
            "serves": serves,
            "config": dict(entry.config),
            "training": without_records(training_record(folder)),
            "history": history(root, name),
            "versions": [_version(root, version) for version in versions(root, name)],
            "site_calibrations": [_site(entry) for entry in site_calibrations.listed(folder)],
            "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        }
    )


@dataclass(frozen=True)
class Checked:
    """A model folder after verifying: its id, its hash, and what is wrong (empty when nothing is)."""

    id: str
    hash: str
    fault: str


def check_all(root: Path, model: str | None = None) -> Iterator[Checked]:
    """Verify every file of every version of every model and of what they need, or of those that are asked for.

    model: ``NAME`` (all its versions), ``NAME@VERSION`` or a folder. Raises UnknownModel for one that is not there.
    """
    if model is None:
        names = [folder.name for folder in _children(root / SHIPPED) if (folder / CONFIG).is_file()]
        names += [folder.name for folder in _children(root / TRAINED) if is_model_name(folder.name)]
        for name in dict.fromkeys(names):
            yield from _check_name(root, name)
        return
    if (Path(model) / CONFIG).is_file():
        yield _check(Path(model).resolve())
        return
    name, version = split_id(model)
    if version is not None:
        yield _check(locate(root, name, version))
        return
    found = list(_check_name(root, name)) if is_model_name(name) else []
    if not found:
        raise UnknownModel(f"expected a model, got {name[:80]!r}; see: python main.py models list")
    yield from found


def without_records(value: Any) -> Any:
    """A training manifest without what stands for patients and scans: lists of records as counts, no hashes."""
    if isinstance(value, Mapping):
        kept = {str(key): without_records(item) for key, item in value.items() if not _is_hash(item)}
        return {key: item for key, item in kept.items() if item not in ({}, "", None)}
    if isinstance(value, list):
        return value if value and all(isinstance(item, (int, float)) for item in value) else len(value)
    return value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def _describe(root: Path, entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "version": entry.version or "flat",
        "method": entry.method,
        "modality": entry.modality,
        "date": published(root, entry),
        "quality": entry.quality,
        "hash": entry.hash,
    }


def _version(root: Path, version: Any) -> dict[str, Any]:
    entry = _entry_of(version)
    return {
        "version": version.version,
        "serves": version.serving,
        "date": published(root, entry),
        "quality": entry.quality,
        "hash": version.hash,
    }


def _entry_of(version: Any) -> ModelEntry:
    found = read_entry(version.name, version.folder, version.version)
    return found or ModelEntry(version.name, version.folder, "", {}, version.version)


def _current(root: Path, name: str) -> Path | None:
    try:
        return current(root, name)
    except CorruptModel:
        return None


def _fault(root: Path, name: str) -> str:
    try:
        return "nothing is promoted" if current(root, name) is None else "its config.yaml cannot be read"
    except CorruptModel as error:
        return str(error)


def _check_name(root: Path, name: str) -> Iterator[Checked]:
    flat, shipped = home(root, name), shipped_folder(root, name)
    folders = [shipped] if shipped is not None else []
    folders += [flat] if (flat / CONFIG).is_file() or (flat / SUMS).is_file() else []
    folders += [version.folder for version in versions(root, name)]
    yield from map(_check, folders)
    if folders:
        for site in site_calibrations.listed(folders[0]):
            yield _check_site(name, site)
    try:
        current(root, name)
    except CorruptModel as error:
        yield Checked(name, "", str(error))


def _check(folder: Path) -> Checked:
    try:
        digest = verify(folder)
        yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (CorruptModel, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return Checked(model_id(folder), "", str(error))
    return Checked(model_id(folder), digest, "")


def _site(entry: site_calibrations.SiteCalibration) -> dict[str, Any]:
    record = entry.record
    known = {key: record[key] for key in ("made", "data", "scans", "patients", "drift") if key in record}
    return {"id": entry.id, "hash": entry.hash, "used": entry.used, "fits": entry.fits, **known}


def _check_site(name: str, entry: site_calibrations.SiteCalibration) -> Checked:
    try:
        digest = verify(entry.folder, site_calibrations.FILES)
    except (CorruptModel, OSError) as error:
        return Checked(f"{name} site calibration {entry.id}", "", str(error))
    return Checked(f"{name} site calibration {entry.id}", digest, "")


def _children(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
