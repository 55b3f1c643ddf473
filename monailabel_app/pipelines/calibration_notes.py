"""What a result says about the calibration that it rests on: how far the scan is from it, and what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from monailabel_app.calibration.background import Background
from monailabel_app.calibration.calibrated_map import ScoreCalibration, analysed_mask
from monailabel_app.calibration.drift import ScanDrift, scan_drift
from monailabel_app.calibration.false_volume import SMALLEST_LESION_ML
from monailabel_app.calibration.operating_points import BOUNDED
from monailabel_app.calibration.tails import rarity

if TYPE_CHECKING:
    from .predict import AnomalyModel, PredictSettings


def drift_of(
    model_map: np.ndarray, brain_mask: np.ndarray, calibration: ScoreCalibration, smoothing: str, *, erosion_mm: float
) -> ScanDrift | None:
    """How far a scan's calibrated map (X, Y, Z) is from those of healthy scans; None where that is not known.

    None: the calibration is of an earlier version, or nothing was analysed.
    """
    reference = calibration.drift.get(smoothing)
    if reference is None:
        return None
    in_plane = calibration.statistics.mean.shape[2] == 1
    inside = analysed_mask(brain_mask, erosion_mm, in_plane=in_plane)
    if not inside.any():
        return None
    levels = [model_map[inside]]
    if in_plane:
        levels = [model_map[..., i][inside[..., i]] for i in range(inside.shape[2])]
    return scan_drift(levels, reference)


def identity_of(model: AnomalyModel, calibration: ScoreCalibration, settings: PredictSettings) -> dict[str, Any]:
    """Which calibration it is, and what it knows of the operating point on healthy scans: rate, bound in ml.

    Of a threshold of one's own the rate follows from the healthy tails, and no bound is known.
    """
    single = calibration.statistics.mean.shape[2] == 1
    points = calibration.points[settings.smoothing]
    if settings.threshold is None:
        point = calibration.point(settings.smoothing, settings.operating_point)
        scans, rate, bound, level = point.healthy_scans, point.measured_fpr, point.bound_ml, point.bound_level
    else:
        tails = calibration.tails.get(settings.smoothing)
        scans, bound, level = next(iter(points.values())).healthy_scans, None, None
        rate = 10.0 ** -float(rarity(np.array([settings.threshold]), tails)[0]) if tails else None
    return {
        **model.calibration_id,
        "healthy_scans": scans,
        "data": str(model.calibration.healthy.get("data", "")),
        "healthy_rate": rate,
        "false_volume_ml": bound,
        "false_volume_level": level,
        "false_volume_of": "a slice of 2 mm" if single else "the whole scan",
    }


def drift_json(drift: ScanDrift | None, background: Background | None) -> dict[str, Any] | None:
    """What a result says of both; None where the calibration is of an earlier version."""
    if drift is None:
        return None
    return {**drift.to_json(), "background": None if background is None else background.to_json()}


def notes_of(settings: PredictSettings, drift: ScanDrift | None, background: Background | None) -> tuple[str, ...]:
    """Warnings in plain sentences."""
    notes = [found.sentence() for found in (drift, background) if found is not None]
    bounded = settings.operating_point == BOUNDED and settings.threshold is None
    if bounded and settings.min_volume_ml < SMALLEST_LESION_ML:
        notes.append(
            f"the bound of the falsely marked volume was found without components under {SMALLEST_LESION_ML:g} ml; "
            f"it does not hold with those of {settings.min_volume_ml:g} ml"
        )
    return tuple(note for note in notes if note)
