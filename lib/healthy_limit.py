"""The score that 95 % of a model's held-out healthy scans stay below, and how far a scan is from it.

The operating points are thresholds for voxels; a typical healthy scan has some voxels above ``balanced``, so that its
score, the mean of the highest 2 ml, is about there. What parts scans is this percentile of the healthy scans' scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.infers import AnomalyInferTask
from monailabel_app.pipelines.calibration_choice import OWN
from monailabel_app.weights.site_calibrations import place

RATE = 0.05
_CALIBRATION = "calibration.json"
Limit = tuple[float, float]


class HealthyLimits:
    """Looks into the calibrations that records name; each is read once while its file stays the same."""

    def __init__(self, tasks: Callable[[], Mapping[str, AnomalyInferTask]]):
        self._tasks = tasks
        self._read: dict[Path, tuple[tuple[int, int], dict[tuple[str, str], Limit]]] = {}

    def now(self) -> CurrentLimits:
        """The limits as models and files are now, to be asked about any number of records."""
        tasks = self._tasks()
        return CurrentLimits(lambda model, *key: self._look(tasks.get(model), *key))

    def _look(self, task: AnomalyInferTask | None, calibration: str, score: str, smoothing: str) -> Limit | None:
        if task is None:
            return None
        folder = task.entry.folder if calibration == OWN else place(task.entry.folder)[0] / Path(calibration).name
        return self._table(folder / _CALIBRATION).get((score, smoothing))

    def _table(self, path: Path) -> dict[tuple[str, str], Limit]:
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size
            held = self._read.get(path)
            if held is None or held[0] != stamp:
                held = self._read[path] = stamp, _limits(json.loads(path.read_text(encoding="utf-8")))
            return held[1]
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


class CurrentLimits:
    """For one listing; each combination of model, calibration, score and smoothing is looked up once."""

    def __init__(self, look: Callable[[str, str, str, str], Limit | None]):
        self._look = look
        self._known: dict[tuple[str, str, str, str], Limit | None] = {}

    def of(self, model: str, record: Mapping[str, Any]) -> Limit | None:
        """The limit for a record of a model, and its distance from the healthy median; None where neither is known."""
        settings = record.get("settings") or {}
        key = (model, str(record.get("calibration") or OWN), str(settings.get("score")), str(settings.get("smoothing")))
        if key not in self._known:
            self._known[key] = self._look(*key)
        return self._known[key]

    def distance(self, model: str, record: Mapping[str, Any]) -> float | None:
        """|score - limit| in units of (limit - healthy median); None for a failed scan or an unknown calibration."""
        score = record.get("score")
        if not isinstance(score, (int, float)) or isinstance(score, bool):
            return None
        found = self.of(model, record)
        return None if found is None else abs(score - found[0]) / found[1]


def _limits(calibration: Mapping[str, Any]) -> dict[tuple[str, str], Limit]:
    found = {}
    for score, entry in calibration.get("scores", {}).items():
        for smoothing, values in entry.get("scan_scores", {}).items():
            healthy = np.asarray(values, dtype=np.float64)
            if len(healthy) and np.isfinite(healthy).all():
                limit, middle = float(np.quantile(healthy, 1 - RATE)), float(np.median(healthy))
                found[score, smoothing] = limit, max(limit - middle, 1e-6 * max(1.0, abs(limit)))
    return found
