"""measured.json beside the weights of a model: what is known of its quality (keys: ``reports.verdicts``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel_app.errors import CorruptModel

from .model_folder import result_hash

MEASURED = "measured.json"
logger = logging.getLogger(__name__)


def read_measured(folder: Path) -> Mapping[str, Any] | None:
    """What was measured of the model in a folder; None where nothing was, or where its weights were others then.

    Nothing is verified here, a file that cannot be read counts as none.
    """
    path = Path(folder) / MEASURED
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        current = record["result_hash"] == result_hash(Path(folder))
    except (OSError, ValueError, KeyError, TypeError, CorruptModel) as error:
        logger.warning("%s of model %s cannot be read: %s", MEASURED, Path(folder).name, type(error).__name__)
        return None
    return record if current else None


def write_measured(folder: Path, record: Mapping[str, Any]) -> None:
    """Write it; the folder has to be sealed afterwards."""
    (Path(folder) / MEASURED).write_text(json.dumps(record, indent=1) + "\n")
