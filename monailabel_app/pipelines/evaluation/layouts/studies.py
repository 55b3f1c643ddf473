"""Layout ``datastore``: MONAI Label's studies folder. Final labels are the truth, empty ones say "nothing abnormal".

The folder's own table (``datastore_v2.json``) is read, not the server's classes: a validation needs no server.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.healthy_list import bids_person

from ..description_file import Keys, inside
from .rows import ROW_KEYS, Defaults, Row, Selection, select

TABLE = "datastore_v2.json"
KEYS = ROW_KEYS | {"tags"}
_LARGEST_BYTES = 128 * 2**20
_PATIENT_KEYS = ("patient", "patient_id", "PatientID", "participant_id", "subject")
_REVIEWED = "reviewed: nothing abnormal"  # written beside an empty final label; a verdict given by hand has no reason
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_NOBODY = "no final label, and nobody said that they are healthy"
_CONTRADICTED = "they are called healthy and carry a final label that is not empty, or the other way round"
_GONE = "their file is not in the folder"
_DISAGREE = "scans have several final labels of which some are empty; the others are joined"


def read_studies(keys: Keys, root: Path, split: str | None) -> Selection:
    """Images with final labels, and those that an empty final label or their information calls healthy.

    A final label is one under ``final`` or a reader's own tag such as ``final_anna``; ``tags`` narrows that down.
    Raises EvaluationFailed for a damaged table.
    """
    table = _read(root / TABLE, keys.file)
    tags, aside, rows = keys.texts("tags"), Counter(), []
    images = inside(root, _text(table.get("images_dir")) or ".", f"{TABLE}: images_dir")
    labels = inside(root, _text(table.get("labels_dir")) or "labels", f"{TABLE}: labels_dir")
    objects = _pairs(table.get("objects"))
    for name in sorted(objects):
        entry = _pairs(objects[name])
        image = _pairs(entry.get("image"))
        info = _pairs(image.get("info"))
        where = f"{TABLE}: object {name[:80]}"
        path = inside(images, f"{name}{_text(image.get('ext'))}", where)
        finals = {
            inside(labels, f"{tag}/{name}{_text(label.get('ext'))}", where): _pairs(label.get("info"))
            for tag, label in ((tag, _pairs(label)) for tag, label in _pairs(entry.get("labels")).items())
            if (tag in tags if tags else _is_final(tag))
        }
        counts = {label: _voxels(label, about) for label, about in finals.items() if label.is_file()}
        healthy, why = _verdict(counts, _flag(info))
        if why or not path.exists():
            aside[why or _GONE] += 1
            continue
        filled = tuple(label for label, voxels in counts.items() if voxels != 0)
        aside[_DISAGREE] += bool(filled) and len(filled) < len(counts)
        fields = {key: str(value) for key, value in info.items() if isinstance(value, (str, int, float))}
        fields |= {"id": name, "patient": _patient(name, info)}
        rows.append(Row(where, fields, path, () if healthy else filled, None, healthy))
    disagree = aside.pop(_DISAGREE, 0)
    notes = [f"{count} scans were left out: {why}" for why, count in sorted(aside.items())]
    notes += [f"{disagree} {_DISAGREE}"] if disagree else []
    if not rows:
        raise EvaluationFailed(
            f"{keys.file}: expected images with final labels or called healthy, got none of {len(objects)}: "
            f"{'; '.join(notes) or 'the folder has no images'}; submit final labels in the viewer first"
        )
    defaults = Defaults("{id}", "{patient}", attributes=("age", "sex", "site"), notes=notes)
    return select(keys, root, rows, split, defaults)


def _verdict(counts: Mapping[Path, int | None], flag: bool | None) -> tuple[bool, str]:
    """Whether a scan is healthy, and why it is left out. flag: what was said by hand."""
    if not counts:
        return flag is True, "" if flag else _NOBODY
    empty = all(voxels == 0 for voxels in counts.values())
    known_lesion = any(counts.values())
    if (empty and flag is False) or (known_lesion and flag is True):
        return False, _CONTRADICTED
    return empty, ""


def _read(path: Path, file: str) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise EvaluationFailed(f"{file}: expected a table of at most {_LARGEST_BYTES // 2**20} MiB in {TABLE}")
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationFailed(
            f"{file}: expected {TABLE} of a MONAI Label studies folder in {path.parent}, found none; give its root"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationFailed(
            f"{file}: expected JSON in {TABLE}, got {type(error).__name__}; the server restores it when it starts"
        ) from None
    if not isinstance(table, dict) or not isinstance(table.get("objects"), dict):
        raise EvaluationFailed(f"{file}: {TABLE}: expected objects by id, got none; is it a studies folder?")
    return table


def _is_final(tag: str) -> bool:
    return tag == "final" or tag.startswith(("final_", "final-"))


def _voxels(label: Path, info: Mapping[str, Any]) -> int | None:
    """What the server counted in this very file; None where it did not."""
    status = label.stat()
    voxels = info.get("voxels")
    fresh = info.get("counted") == [status.st_mtime_ns, status.st_size]
    return voxels if fresh and type(voxels) is int and voxels >= 0 else None


def _flag(info: Mapping[str, Any]) -> bool | None:
    value = info.get("healthy")
    if value is None or info.get("healthy_reason") == _REVIEWED:
        return None
    # What nobody can read is not taken for a verdict that the scan is healthy.
    return _WORDS.get(str(value).strip().casefold(), False)


def _patient(name: str, info: Mapping[str, Any]) -> str:
    stated = (str(info[key]).strip() for key in _PATIENT_KEYS if info.get(key) is not None)
    told = next((patient for patient in stated if patient not in {"", "UNK"}), None)
    # An image that was moved to another id keeps none of its name's meaning.
    return told or (None if "replaced_id" in info else bids_person(name)) or name


def _pairs(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
