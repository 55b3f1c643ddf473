"""Cards and measured.json of all shipped models from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel_app.errors import EvaluationFailed
from monailabel_app.registry import load_method
from monailabel_app.reports.shipped_card import shipped_card
from monailabel_app.reports.verdicts import measured_record
from monailabel_app.weights.measured_file import write_measured
from monailabel_app.weights.model_folder import CARD, open_model_folder, result_hash, seal

from .shipped_models import DEFAULTS, SHIPPED

_FILES = {"evaluate": "evaluation.json", "selftest": "blind_spots.json", "fairness": "fairness.json"}


def write_cards(
    root: Path, evaluation: Path, *, selftests: Sequence[Path] = (), fairness: Path | None = None
) -> Iterator[str]:
    """card.md and measured.json of every shipped model that is there; weights and calibration stay.

    evaluation: evaluation.json of ``evaluate``. selftests: blind_spots.json of ``selftest``, of any models. fairness:
    fairness.json. Each may be given by the folder that holds it. Yields a line per model. Raises EvaluationFailed when
    a file cannot be read, before anything is written.
    """
    record = _read(evaluation, "sets", "evaluate")
    spots = [_read(path, "sentences", "selftest") for path in selftests]
    fair = _read(fairness, "models", "fairness") if fairness is not None else None
    for name, shipped in SHIPPED.items():
        folder = root / "model_weights" / name
        if not (folder / "calibration.json").is_file():
            continue
        opened = open_model_folder(folder)
        calibration = json.loads((folder / "calibration.json").read_text())
        about = load_method(shipped.method).__doc__ or ""
        first = [sequence for sequence, model in DEFAULTS.items() if model == name]
        measured = measured_record(name, result_hash(folder), record, selftests=spots, fairness=fair)
        card = shipped_card(name, opened.config, calibration, about, measured, record["sets"], first, fair)
        (folder / CARD).write_text(card)
        write_measured(folder, measured)
        seal(folder)
        yield f"{name}: {len(measured['sets'])} sets" + (", not measured as it is now" * (not measured["sets"]))


def _read(path: Path, key: str, command: str) -> Mapping[str, Any]:
    """What a command has written, from its file or the folder that holds it."""
    path = Path(path)
    try:
        record = json.loads((path / _FILES[command] if path.is_dir() else path).read_text())
        record[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationFailed(
            f"expected {path.name} as `main.py {command}` writes it, got {type(error).__name__}; run that first"
        ) from error
    return record
