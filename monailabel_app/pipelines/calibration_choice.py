"""Which calibration a loaded model is used with: its own, or the one made on the site's healthy scans."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.errors import CorruptModel, InvalidSettings
from monailabel_app.weights import site_calibrations
from monailabel_app.weights.model_folder import calibration_hash

SITE, OWN = "site", "shipped"
CALIBRATIONS = (SITE, OWN)  # the default first


@dataclass(frozen=True)
class Chosen:
    """calibration: None for the own one. kind: ``site`` or ``shipped``. id, hash: as in results. made: when (UTC)."""

    calibration: Calibration | None
    kind: str
    id: str
    hash: str
    made: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, "id": self.id, "hash": self.hash, **({"made": self.made} if self.made else {})}


@dataclass(frozen=True)
class Pinned:
    """A choice that is made already."""

    chosen: Chosen

    def get(self, wanted: str) -> Chosen:
        """The one there is."""
        return self.chosen


class CalibrationChoice:
    """The calibrations of one model folder. What is used is looked up at every request: one small file is read."""

    def __init__(self, folder: Path, scores: Sequence[str], grid: Sequence[int]) -> None:
        self._folder, self._scores, self._grid = Path(folder), tuple(scores), tuple(grid)
        self._own = Chosen(None, OWN, OWN, calibration_hash(folder))
        self._site: Chosen | None = None
        self._loading = threading.Lock()

    def get(self, wanted: str) -> Chosen:
        """``site``: the site's, where one is used, else the model's own; ``shipped``: always that.

        Raises InvalidSettings for another word, CorruptModel for a site calibration that is missing, damaged or of
        other weights.
        """
        if wanted not in CALIBRATIONS:
            raise InvalidSettings(f"expected calibration out of {', '.join(CALIBRATIONS)}, got {wanted!r}")
        used = site_calibrations.used_id(self._folder) if wanted == SITE else None
        if used is None:
            return self._own
        with self._loading:
            if self._site is None or self._site.id != used:
                self._site = self._load(used)
            return self._site

    def of(self, calibration_id: str) -> Chosen:
        """The calibration of an id, used or not. Raises CorruptModel where it is gone, damaged or of other weights."""
        return self._own if calibration_id == OWN else self._load(calibration_id)

    def _load(self, used: str) -> Chosen:
        entry = site_calibrations.checked(self._folder, used)
        calibration = Calibration.load(entry.folder)
        missing = [name for name in self._scores if name not in calibration.scores]
        shapes = {score.statistics.mean.shape for score in calibration.scores.values()}
        if missing or shapes != {self._grid}:
            raise CorruptModel(
                f"expected the site calibration {used} to hold the scores {', '.join(self._scores)} on the grid "
                f"{self._grid}, got {', '.join(calibration.scores)} on {sorted(shapes)}; calibrate again"
            )
        return Chosen(calibration, SITE, used, entry.hash, str(entry.record.get("made", "")))
