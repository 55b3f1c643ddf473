"""Smoothing of an anomaly map inside the brain."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.postprocessing.boxes import bounding_box

_TRUNCATE = 4.0  # radius of the Gaussian in standard deviations
_MEDIAN_CHUNK = 8192  # voxels whose neighbourhoods are sorted at once


def gaussian_smooth(
    anomaly_map: np.ndarray, brain_mask: np.ndarray, *, sigma_mm: float, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Gaussian average over brain voxels only: (X, Y, Z) float32, 0 outside the brain.

    The average is normalised by the share of the window inside the brain (G * (a m)) / (G * m), so the zeros
    outside do not pull the rim down and a constant map stays constant. sigma_mm 0 only masks.
    Raises InvalidSettings for a negative sigma or a spacing that is not positive, InvalidVolume for shapes
    that differ.
    """
    _check_shapes(anomaly_map, brain_mask)
    spacing = tuple(float(v) for v in spacing_mm)
    if not sigma_mm >= 0 or len(spacing) != 3 or not min(spacing) > 0:
        raise InvalidSettings(
            f"Expected sigma_mm >= 0 and three positive spacings, got sigma_mm={sigma_mm}, "
            f"spacing_mm={spacing}"
        )
    inside = np.asarray(brain_mask) > 0
    result = np.where(inside, anomaly_map, 0).astype(np.float32)
    sigma = [sigma_mm / v for v in spacing]
    box = bounding_box(inside, [ceil(_TRUNCATE * s) for s in sigma])
    if sigma_mm == 0 or box is None:
        return result
    options = {"sigma": sigma, "mode": "constant", "truncate": _TRUNCATE}
    total = ndimage.gaussian_filter(result[box], **options)
    share = ndimage.gaussian_filter(inside[box].astype(np.float32), **options)
    result[box] = np.divide(total, share, out=np.zeros_like(total), where=inside[box])
    return result


def median_smooth(
    anomaly_map: np.ndarray, brain_mask: np.ndarray, *, size: int | Sequence[int] = 5
) -> np.ndarray:
    """Median over a box of voxels around each brain voxel: (X, Y, Z) float32, 0 outside the brain.

    size: odd, in voxels, one number or one per axis; 5 in Behrendt et al. It removes what is narrower than
    half the box, small lesions included. Voxels outside the brain or the volume count as 0. size 1 only
    masks. Raises InvalidSettings for an even or non-positive size, InvalidVolume for shapes that differ.
    """
    _check_shapes(anomaly_map, brain_mask)
    sizes = (size,) * 3 if isinstance(size, (int, np.integer)) else tuple(size)
    if len(sizes) != 3 or any(int(v) != v or v < 1 or v % 2 == 0 for v in sizes):
        raise InvalidSettings(f"Expected one or three odd median sizes of at least 1, got {size}")
    inside = np.asarray(brain_mask) > 0
    result = np.where(inside, anomaly_map, 0).astype(np.float32)
    if max(sizes) == 1:
        return result
    padded = np.pad(result, [(v // 2, v // 2) for v in sizes])
    windows = np.lib.stride_tricks.sliding_window_view(padded, sizes)
    # Only brain voxels are looked at, and a partition is enough for a median.
    voxels = np.argwhere(inside)
    middle = int(np.prod(sizes)) // 2
    for start in range(0, len(voxels), _MEDIAN_CHUNK):
        at = tuple(voxels[start : start + _MEDIAN_CHUNK].T)
        neighbourhoods = windows[at].reshape(len(at[0]), -1)
        neighbourhoods.partition(middle, axis=1)
        result[at] = neighbourhoods[:, middle]
    return result


def _check_shapes(anomaly_map: np.ndarray, brain_mask: np.ndarray) -> None:
    if np.ndim(anomaly_map) != 3 or np.shape(anomaly_map) != np.shape(brain_mask):
        raise InvalidVolume(
            "Expected an anomaly map and a brain mask as (x, y, z) volumes of one shape, "
            f"got {np.shape(anomaly_map)} and {np.shape(brain_mask)}"
        )
