"""Three bands of suspicion with a fixed meaning: how rare a calibrated value is among healthy brain voxels.

An operating point is one cut through the map; the bands say how far beyond a cut a region lies, in one label map that
any viewer shows. Their edges are the values that 1 %, 0.1 % and 0.01 % of healthy voxels exceed, whatever operating
point is chosen, so that a colour means the same in every scan and for every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.postprocessing.delineate import delineated

from .calibrated_map import ScoreCalibration
from .tails import TAIL_SHARES

BANDS = ("low suspicion", "medium suspicion", "high suspicion")
BAND_SHARES = (0.01, 0.001, 0.0001)
# Those of the map's scale at these shares, in reports and on the page: the brighter, the rarer, so that they are told
# apart without seeing red and green.
COLOURS: Mapping[str, tuple[int, int, int]] = dict(
    zip(BANDS, ((203, 65, 73), (249, 142, 9), (252, 243, 120)), strict=True)
)
LABELS: Mapping[str, int] = {name: number for number, name in enumerate(BANDS, start=1)}


def band_edges(calibration: ScoreCalibration, smoothing: str) -> tuple[float, float, float]:
    """The value in healthy standard deviations from which on each band begins, not decreasing.

    Raises InvalidSettings for a calibration of an earlier version, which does not know its healthy tails.
    """
    tails = calibration.tails.get(smoothing, ())
    if len(tails) != len(TAIL_SHARES):
        raise InvalidSettings(
            "expected a calibration that holds healthy tails, got one of an earlier version; calibrate the model again "
            "(python main.py calibrate), or ask for the model without bands"
        )
    return tuple(float(tails[TAIL_SHARES.index(share)]) for share in BAND_SHARES)


def band_map(
    anomaly_map: np.ndarray,
    edges: Sequence[float],
    spacing_mm: Sequence[float],
    brain_mask: np.ndarray,
    min_volume_ml: float = 0.0,
) -> np.ndarray:
    """The band of every voxel, (x, y, z) uint8: 0 for none, 1 to 3 for those of BANDS.

    anomaly_map: (x, y, z) calibrated; brain_mask: (x, y, z). What is in any band is delineated and freed of components
    smaller than min_volume_ml as a mask is; within what is left, a voxel is in the highest band whose edge it exceeds.
    Raises what ``find_lesions`` raises.
    """
    shown = delineated(anomaly_map, spacing_mm)
    mask, _ = find_lesions(
        shown,
        brain_mask,
        np.diag([*spacing_mm, 1.0]),
        threshold=min(edges),
        min_volume_mm3=min_volume_ml * 1000,
    )
    inside = mask > 0
    mask[inside] = sum((shown[inside] > edge).astype(np.uint8) for edge in edges)
    return mask
