"""How a method's models present themselves; MONAI Label's ``TaskConfig`` without state and ``eval``."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from lib.catalogue import ModelEntry
from monailabel_app.registry import method_info

RESEARCH_ONLY = "Research use only; not a medical device."

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
        """One line for the viewers: what it finds, on which scans, learnt from what, and for which use."""
        words = str(entry.config.get("description") or self.title).strip().rstrip(".")
        modality = entry.modality.upper()
        scans = "" if modality in words else f" For {modality} head scans."
        healthy = f" Healthy scans: {entry.training_data}." if entry.training_data else ""
        return f"{words}.{scans}{healthy} {RESEARCH_ONLY}"


def _calibrated_scores(entry: ModelEntry) -> list[str]:
    """Names in calibration.json, which is small; the voxel maps beside it are not opened."""
    try:
        return list(json.loads((entry.folder / "calibration.json").read_text())["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("model %s has no readable calibration.json", entry.name)
        return []
