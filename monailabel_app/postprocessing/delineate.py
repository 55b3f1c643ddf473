"""Where a region above the threshold ends: at a fixed share of its own peak.

A threshold that suits faint lesions lies far down the flank of a strong one: residuals are smoothed, and with a quiet
healthy background everything within reach of the smoothing is above it. Positron emission tomography has the same
problem and outlines a focus at about 41 % of its maximum (Erdi et al., Cancer 80, 1997; Boellaard et al., EANM
guidelines, 2015). Here a voxel must reach that share of the highest value within a few millimetres of it.

Which voxels these are does not depend on the threshold, and no voxel is added. A mask can therefore only get smaller:
the false-positive rate that an operating point promises still holds, and a higher threshold still gives a mask inside
that of a lower one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.boxes import bounding_box

PEAK_SHARE = 0.4
REACH_MM = 12.0


def delineated(
    anomaly_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    peak_share: float = PEAK_SHARE,
    reach_mm: float = REACH_MM,
) -> np.ndarray:
    """The map (x, y, z) with 0 in place of every value below ``peak_share`` of the highest one around it.

    Around a voxel means the box that goes ``reach_mm`` in both directions of each axis; spacing_mm: voxel edge lengths.
    anomaly_map: not negative. peak_share 0 returns it as it is. Raises InvalidSettings for a share outside [0, 1), a
    reach below 0 or a spacing that is not positive.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if not 0 <= peak_share < 1 or not reach_mm >= 0 or not (spacing > 0).all():
        raise InvalidSettings(
            f"expected a share of the peak from 0 to below 1, a reach >= 0 and a positive spacing, got {peak_share}, "
            f"{reach_mm} and {tuple(spacing_mm)}"
        )
    if peak_share == 0:
        return anomaly_map
    made = np.zeros(anomaly_map.shape, anomaly_map.dtype)  # zeros_like would touch all of it
    box = bounding_box(anomaly_map > 0)  # outside it there is nothing to keep, and nothing that is higher
    if box is not None:
        values = anomaly_map[box]
        np.copyto(made[box], values, where=values >= _least(values, spacing, peak_share, reach_mm))
    return made


def least_kept(anomaly_map: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The value (x, y, z) that a voxel must reach for ``delineated`` to keep it.

    For another grid the two maps are interpolated and compared there: a map of ``delineated`` has steps down to 0,
    which interpolation turns into flanks that reach a voxel further out.
    """
    return _least(anomaly_map, np.asarray(spacing_mm, dtype=np.float64), PEAK_SHARE, REACH_MM)


def _least(values: np.ndarray, spacing: np.ndarray, peak_share: float, reach_mm: float) -> np.ndarray:
    size = [2 * int(min(reach_mm / edge, 10_000)) + 1 for edge in spacing]
    least = ndimage.maximum_filter(values, size=size, mode="nearest")
    least *= peak_share
    return least
