"""How a method's models present themselves; MONAI Label's ``TaskConfig`` without state and ``eval``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.catalogue import ModelEntry
from monailabel_app.errors import CorruptModel
from monailabel_app.registry import method_info
from monailabel_app.reports.verdicts import verdict_sentence
from monailabel_app.weights.model_folder import result_hash
from monailabel_app.weights.site_calibrations import used_id

RESEARCH_ONLY = "Research use only; not a medical device."
MEASURED = "measured.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MethodConfig:
    """method: id in the registry. title: in words, for models whose folder has no description."""

    method: str
    title: str

    def scores_of(self, entry: ModelEntry) -> tuple[str, ...]:
        """The scores a model is calibrated for, default first; those of its method while it has no calibration."""
        listed = _calibrated_scores(entry) or entry.config.get("scores") or method_info(self.method).scores
        return tuple(str(score) for score in listed)

    def describe(self, entry: ModelEntry) -> str:
        """One line for the viewers: what it finds, on which scans, learnt from what, its limits, and for which use.

        Its limits: the baselines that it was not shown to beat. The calibration is named where it is the site's.
        """
        words = str(entry.config.get("description") or self.title).strip().rstrip(".")
        modality = entry.modality.upper()
        scans = "" if modality in words else f"For {modality} head scans."
        healthy = f"Healthy scans: {entry.training_data}." if entry.training_data else ""
        site = site_calibration(entry)
        thresholds = f"Thresholds: this site's calibration {site}." if site else "Thresholds: its own calibration."
        parts = (f"{words}.", scans, healthy, verdict(entry), thresholds, RESEARCH_ONLY)
        return " ".join(part for part in parts if part)


def site_calibration(entry: ModelEntry) -> str:
    """The id of the calibration made on this site's scans that a model is used with; empty for its own."""
    return used_id(entry.folder) or ""


def verdict(entry: ModelEntry) -> str:
    """On which sequences the model was not shown to beat the baselines, and whether it is one; empty otherwise.

    What was measured with other weights, settings or thresholds says nothing about this model.
    """
    path = entry.folder / MEASURED
    try:
        status = path.stat()
        measured = _read_measured(path, status.st_mtime_ns, status.st_size)
        if not measured or measured.get("result_hash") != result_hash(entry.folder):
            return ""
        limits = [found for found in measured["sequences"] if found["answer"] != "yes"]
        return verdict_sentence({**measured, "sequences": limits})
    except FileNotFoundError:
        return ""
    except (OSError, CorruptModel, KeyError, TypeError, AttributeError) as error:
        logger.warning("what was measured of model %s cannot be read (%s)", entry.name, type(error).__name__)
        return ""


@lru_cache(maxsize=128)
def _read_measured(path: Path, modified: int, size: int) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("what was measured of a model cannot be read")
        return {}
    return record if isinstance(record, dict) else {}


def _calibrated_scores(entry: ModelEntry) -> list[str]:
    """Names in calibration.json, which is small; the voxel maps beside it are not opened."""
    try:
        return list(json.loads((entry.folder / "calibration.json").read_text())["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("model %s has no readable calibration.json", entry.name)
        return []
