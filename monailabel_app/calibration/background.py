"""A scan whose whole brain deviates is brought back towards the healthy scans of the calibration.

On another scanner the map of every voxel is wider, not that of lesions only: a threshold of 1 % of healthy voxels then
marks half of the brain. Efron's empirical null (JASA 99, 2004) answers this by taking the scale of the null
distribution from the bulk of the data at hand. Here the bulk is the upper quartile, which a lesion moves little while
it takes less than that of the brain, and it is used with restraint: scans up to twice as wide as the calibration's
stay as they are (of five shipped T1 models' 20 healthy scans the widest was 1.5 times as wide), and so do those whose
bulk lies no further away than healthy scans' (``drift``); others are divided until they are twice as wide. So nothing
changes for scans like those of the calibration.

Only for whole volumes: in a single slice a large lesion is a large part of the bulk (measured: up to 14 times as wide).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .calibrated_map import SMOOTHED_MM, ScoreCalibration, analysed_mask
from .drift import DriftReference, scan_drift

LARGEST_RATIO = 2.0
_QUARTILE = 75  # of 100, of the brain voxels that are scored


@dataclass(frozen=True)
class Background:
    """ratio: the upper quartile of the scan's calibrated voxels to that of the calibration's healthy ones.

    divided_by: what the map was divided by; 1 for a scan that stays as it is.
    """

    ratio: float
    divided_by: float

    def sentence(self) -> str:
        """What a result says about it; empty where nothing was changed."""
        if self.divided_by == 1.0:
            return ""
        return (
            f"the whole brain of this scan deviates {self.ratio:.1f} times as much as healthy scans of the calibration "
            f"do, as on another scanner: the map was divided by {self.divided_by:.2g}; faint lesions may be missed, "
            "and too much may be marked all the same"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"ratio": round(self.ratio, 4), "divided_by": round(self.divided_by, 4)}


def background_of(values: np.ndarray, reference: DriftReference | None) -> Background | None:
    """values: (voxels,) of a scan's calibrated map, those that are scored.

    None where it cannot be told: no voxels, a calibration of an earlier version (reference None), or a score whose
    healthy upper quartile is 0.
    """
    if reference is None or not len(values) or reference.quantiles[_QUARTILE] <= 0:
        return None
    ratio = float(np.quantile(values, _QUARTILE / 100)) / reference.quantiles[_QUARTILE]
    elsewhere = ratio > LARGEST_RATIO and scan_drift([values], reference).drifted
    return Background(ratio, ratio / LARGEST_RATIO if elsewhere else 1.0)


def matched(
    anomaly_map: np.ndarray,
    brain_mask: np.ndarray,
    calibration: ScoreCalibration,
    *,
    score: str,
    smoothing: str,
    erosion_mm: float,
) -> tuple[np.ndarray, Background | None]:
    """The calibrated map (X, Y, Z), divided where its background is too wide, and what was found of the background.

    The map given is returned as it is where nothing is to be done: for single slices and models of them, and for
    combined scores, which are no longer linear in a deviation; there the members' maps are matched before.
    """
    if score in SMOOTHED_MM or 1 in (calibration.statistics.mean.shape[2], brain_mask.shape[2]):
        return anomaly_map, None
    inside = analysed_mask(brain_mask, erosion_mm)
    background = background_of(anomaly_map[inside], calibration.drift.get(smoothing))
    if background is None or background.divided_by == 1.0:
        return anomaly_map, background
    return (anomaly_map / np.float32(background.divided_by)).astype(np.float32, copy=False), background
