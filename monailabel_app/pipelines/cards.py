"""Cards of all shipped models from one comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from monailabel_app.errors import EvaluationFailed
from monailabel_app.registry import load_method
from monailabel_app.reports.shipped_card import shipped_card
from monailabel_app.weights.model_folder import CARD, open_model_folder, seal

from .shipped_models import DEFAULTS, SHIPPED


def write_cards(root: Path, table: Path) -> Iterator[str]:
    """card.md of every shipped model that is there, from ``methods_table.json``; weights and calibration stay.

    Yields the names. Raises EvaluationFailed when the table cannot be read.
    """
    try:
        record = json.loads(Path(table).read_text())
        sets = record["sets"]
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationFailed(
            f"expected the table that `main.py compare` writes, got {type(error).__name__}; run the comparison first"
        ) from error
    for name, shipped in SHIPPED.items():
        folder = root / "model_weights" / name
        if not (folder / "calibration.json").is_file():
            continue
        opened = open_model_folder(folder)
        calibration = json.loads((folder / "calibration.json").read_text())
        about = load_method(shipped.method).__doc__ or ""
        first = [sequence for sequence, model in DEFAULTS.items() if model == name]
        (folder / CARD).write_text(shipped_card(name, opened.config, calibration, about, sets, first))
        seal(folder)
        yield name
