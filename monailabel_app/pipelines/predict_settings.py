"""What can be chosen about a prediction, and the threshold that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM, ScoreCalibration
from monailabel_app.calibration.false_volume import SMALLEST_LESION_ML
from monailabel_app.calibration.operating_points import POINTS
from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.components import LARGEST_VOLUME_LIMIT_ML
from monailabel_app.types import GATE_SETTINGS

from .calibration_choice import SITE

CUSTOM = "custom"
HIGHEST_THRESHOLD = 1000.0


@dataclass(frozen=True)
class PredictSettings:
    """score: None is the model's default. min_volume_ml: smaller components are dropped. device: cpu or cuda[:n].

    gate: what becomes of a scan that is unlike the training scans: ``warn`` analyses it and says so, ``refuse`` raises
    ScanRefused (an empty mask would read as a healthy scan), ``off`` does not ask. uncertainty: repeat the analysis
    with small changes of preparation and noise, at several times the cost, and say how much each lesion would change.
    calibration: ``site``, the one made on the site's own healthy scans where one is in use, or ``shipped``. threshold:
    in healthy standard deviations, instead of the operating point's.
    """

    operating_point: str = "balanced"
    score: str | None = None
    smoothing: str = "standard"
    min_volume_ml: float = SMALLEST_LESION_ML
    seed: int = 0
    device: str = "cpu"
    gate: str = "warn"
    uncertainty: bool = False
    calibration: str = SITE
    threshold: float | None = None

    def threshold_in(self, calibration: ScoreCalibration) -> float:
        """The threshold that a calibration gives to these settings. Raises InvalidSettings for a point it lacks."""
        if self.threshold is not None:
            return float(self.threshold)
        return calibration.point(self.smoothing, self.operating_point).threshold

    def to_json(self, score: str) -> dict[str, Any]:
        """As results have them: with the score that was used, and ``custom`` for a threshold of one's own."""
        told = {**asdict(self), "score": score}
        if self.threshold is None:
            del told["threshold"]
        else:
            told["operating_point"] = CUSTOM
        return told


def check_settings(settings: PredictSettings) -> None:
    """Raises InvalidSettings for a value outside of what is allowed."""
    allowed: Mapping[str, Any] = {"operating_point": POINTS, "smoothing": SMOOTHING_MM, "gate": GATE_SETTINGS}
    for name, values in allowed.items():
        if getattr(settings, name) not in values:
            raise InvalidSettings(f"expected {name} out of {', '.join(values)}, got {getattr(settings, name)!r}")
    if not 0 <= settings.min_volume_ml <= LARGEST_VOLUME_LIMIT_ML:
        raise InvalidSettings(
            f"expected min_volume_ml between 0 and {LARGEST_VOLUME_LIMIT_ML:g}, got {settings.min_volume_ml}"
        )
    if settings.threshold is not None and not 0 <= settings.threshold <= HIGHEST_THRESHOLD:
        raise InvalidSettings(
            f"expected threshold between 0 and {HIGHEST_THRESHOLD:g} healthy standard deviations, got "
            f"{settings.threshold}"
        )
