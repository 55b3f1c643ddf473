"""How many of some healthy scans a calibration rests on, told from its voxel means alone: it keeps no ids.

Of n scans that a calibration rests on and s others of the same kind, the means differ by a variance of v / n + v / s at
a voxel, v being the scans' own; every scan that is in both lowers that by 2 v / (n s). So the number of shared scans is
(n + s - n s d) / 2, where d is the squared difference of the means in units of v. Only the finest differences are
looked at: there two people have nothing in common, while coarse ones tell scanners apart. Scans of another kind differ
more, and so the number comes out too small rather than too large.

Measured on three shipped T1 models that 20 scans of IXI calibrated, five draws of sets each: 0 in all of the 45 sets of
5 to 30 other scans of IXI; 8 to 10 of ten shared scans alone, 6 to 11 of them among 20 others, 11 to 15 of fifteen
among 5 others, 15 to 20 of all twenty among 10 others; 0 to 7 of five among 15 others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from monailabel_app.calibration.voxel_statistics import VoxelStatistics

_POOLED, _COARSE = 1.0, 1.2  # voxels: of the calibration's own pooling, and of what is taken away
_RIM = 2  # voxels
# The measured spread per scan, on so many voxels; a number is told when it is so many spreads above 0.
_SPREAD, _OF_VOXELS, _SURE = 0.02, 75_000, 4.0
_FEWEST = 2.5


def count_shared(
    own: VoxelStatistics, calibrated_on: int, maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]
) -> int:
    """About how many of the scans with these raw maps are among the ``calibrated_on`` ones behind ``own``.

    own: of the calibration, (X, Y, Z). maps, masks: (X, Y, Z) each, taken one by one. 0 where it cannot be told from
    chance: with few voxels, as of single slices, or when the scans shared are few among many.
    """
    scans, total, square = 0, np.zeros(own.mean.shape), np.zeros(own.mean.shape)
    everywhere = np.ones(own.mean.shape, dtype=bool)
    for values, mask in zip(maps, masks, strict=True):
        inside = np.asarray(mask, dtype=bool)
        weight = _blur(inside.astype(np.float64), _POOLED)
        fine = _fine(_blur(np.where(inside, values, 0).astype(np.float64), _POOLED) / np.maximum(weight, 1e-6))
        fine /= own.std
        total += fine
        square += fine**2
        everywhere &= inside
        scans += 1
    widths = [2 * _RIM + 1 if size > 1 else 1 for size in everywhere.shape]
    core = ndimage.binary_erosion(everywhere, np.ones(widths))
    voxels = int(core.sum())
    if scans < 2 or calibrated_on < 2 or not voxels:
        return 0
    mean = total[core] / scans
    spread = float((square[core] - scans * mean**2).sum()) / (scans - 1)
    if spread <= 0:
        return 0
    apart = float((((_fine(own.mean.astype(np.float64)) / own.std)[core] - mean) ** 2).sum()) / spread
    found = (calibrated_on + scans - calibrated_on * scans * apart) / 2
    unsure = _SPREAD * (calibrated_on + scans) * math.sqrt(_OF_VOXELS / voxels)
    return min(round(found), calibrated_on, scans) if found >= max(_FEWEST, _SURE * unsure) else 0


def _fine(values: np.ndarray) -> np.ndarray:
    return values - _blur(values, _COARSE)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(values, [sigma if size > 1 else 0.0 for size in values.shape], truncate=3.0)
