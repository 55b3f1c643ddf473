"""The report page made again from the files of ``evaluate``, ``selftest`` and ``fairness``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel_app.errors import EvaluationFailed
from monailabel_app.files import replace_file
from monailabel_app.reports.evaluation_page import evaluation_html

_MOST_PICTURE_MB = 8.0
_PNG = b"\x89PNG\r\n\x1a\n"


def write_page(evaluation: Path, out: Path, *, selftests: Sequence[Path] = (), fairness: Path | None = None) -> Path:
    """Write the page and return where it is.

    evaluation: evaluation.json, with its pictures beside it, or its folder. selftests: blind_spots.json files or their
    folders. fairness: fairness.json or its folder. Raises EvaluationFailed for a file that is missing or not such a
    record.
    """
    source = _file(evaluation, "evaluation.json")
    record = _read(source, "sets", list)
    blind_spots = [_read(_file(path, "blind_spots.json"), "points", dict) for path in selftests]
    fair = _read(_file(fairness, "fairness.json"), "models", list) if fairness is not None else None
    page = evaluation_html(
        record, blind_spots=blind_spots, fairness=fair, pictures=read_pictures(record, source.parent)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, page)
    return out


def read_pictures(record: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """The PNG files that the record's examples name, by those names; none from outside the folder."""
    found = {}
    sets = [entry for entry in record["sets"] if isinstance(entry, Mapping)]
    names = [example.get("picture") for entry in sets for example in entry.get("examples") or ()]
    for name in filter(lambda value: isinstance(value, str) and value, names):
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            continue
        if path.stat().st_size <= _MOST_PICTURE_MB * 1e6 and (content := path.read_bytes()).startswith(_PNG):
            found[name] = content
    return found


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _read(path: Path, key: str, kind: type) -> dict[str, Any]:
    """A JSON object that has the key, of that kind. NaN and infinity, no JSON, are read as missing numbers."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise EvaluationFailed(
            f"expected a record at {path}, could not read it ({type(error).__name__}); check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EvaluationFailed(
            f"expected JSON in {path.name}, got something else ({error}); give the file that the command wrote"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get(key), kind):
        raise EvaluationFailed(
            f"expected a record with {key!r} in {path.name}, got none; was the file of another command given?"
        )
    return record
