"""How many of some healthy scans a calibration rests on, told from its voxel means alone: it keeps no ids.

Twice over. First as a whole: of n scans that a calibration rests on and s others of the same kind, the means differ
by a variance of v / n + v / s at a voxel, v being the scans' own; every scan that is in both lowers that by
2 v / (n s). So the number of shared scans is (n + s - n s d) / 2, where d is the squared difference of the means in
units of v. Only the finest differences are looked at: there two people have nothing in common, while coarse ones tell
scanners apart. Scans of another kind differ more, and so the number comes out too small rather than too large. It names
no scan, and it takes v to be the same for everybody: a few scans with more or less of their own put it several off, to
either side.

Then scan by scan: what is each one's own makes up 1 / n of the calibration's mean where the scan is in it, and nothing
where it is not. Solved for all scans together, on the second Laplacian, these shares lie on two levels, 1 / n apart;
those on the upper one are counted. This number stands while the scans that are in one only, which no solution can
take away, blur the levels by no more than ``_BLURRED``; else the first one. Where all shares are alike, none or all are
in it, and the first number says which.

Measured on raw maps of intensity_t1, atlas_zscore_t1 and cold_diffusion_t1 of 90 people of IXI, 15 to 60 of whom
calibrated, in 954 sets of 15 to 50 whose first number was not 0: counted in 295, right in all. (Levels blurred by up
to 0.2 would be counted in another 160, ten of them one off, the least blurred one by 0.15.) Of sets that share with a
calibration on 20, ``intensity_z``, ten draws each: 15 of 20 and of 45 and 20 of 30 counted in all, 10 of 30 in eight,
10 of 20 in two; the first number there: 14 to 16, 20 to 21, 6 to 12 and 9 to 12. 5 of 20: never counted, 0 to 6. 0 in
all of ten sets of 20 and of 30 other scans.

What it cannot see: another scan of the same person, a scan that was prepared anew in another way, and fewer than three
scans. Of fewer than ``_FEW`` scans, or of a set that is a part of the calibration's, it gives the first number only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from monailabel_app.calibration.voxel_statistics import VoxelStatistics

_POOLED, _COARSE = 1.0, 1.2  # voxels: of the calibration's own pooling, and of what is taken away
_RIM = 2  # voxels
# The measured spread per scan, on so many voxels; a number is told when it is so many spreads above 0.
_SPREAD, _OF_VOXELS, _SURE = 0.02, 75_000, 4.0
_FEWEST = 2.5
# Scans; of the distance between the levels: a scan on the wrong one is four spreads away, out of dozens of scans.
_FEW, _BLURRED = 15, 0.125

UNSEEN = (
    "told from the calibration's voxel means, which keep no ids: other scans of the same people, scans that were "
    "prepared in another way and fewer than three shared scans cannot be seen"
)


class Shared(NamedTuple):
    """scans: how many. counted: each was told from the others, which measured exact; else about so many."""

    scans: int
    counted: bool = False


NONE_SHARED = Shared(0)


def count_shared(
    own: VoxelStatistics, calibrated_on: int, maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]
) -> Shared:
    """How many of the scans with these raw maps are among the ``calibrated_on`` ones behind ``own``.

    own: of the calibration, (X, Y, Z). maps, masks: (X, Y, Z) each, taken one by one. 0 where it cannot be told from
    chance: with few voxels, as of single slices, or when the scans shared are few among many.
    """
    scans, total, square = 0, np.zeros(own.mean.shape), np.zeros(own.mean.shape)
    edges: list[np.ndarray] = []
    first = None
    everywhere = np.ones(own.mean.shape, dtype=bool)
    for values, mask in zip(maps, masks, strict=True):
        inside = np.asarray(mask, dtype=bool)
        weight = _blur(inside.astype(np.float64), _POOLED)
        pooled = _blur(np.where(inside, values, 0).astype(np.float64), _POOLED) / np.maximum(weight, 1e-6)
        fine = _fine(pooled) / own.std
        first = inside if first is None else first
        # Only where all of them can be: a few hundred thousand bytes of each are held.
        edges.append((_edges(pooled) / own.std)[first].astype(np.float32))
        total += fine
        square += fine**2
        everywhere &= inside
        scans += 1
    widths = [2 * _RIM + 1 if size > 1 else 1 for size in everywhere.shape]
    core = ndimage.binary_erosion(everywhere, np.ones(widths))
    voxels = int(core.sum())
    if scans < 2 or calibrated_on < 2 or not voxels:
        return NONE_SHARED
    mean = total[core] / scans
    spread = float((square[core] - scans * mean**2).sum()) / (scans - 1)
    if spread <= 0:
        return NONE_SHARED
    apart = float((((_fine(own.mean.astype(np.float64)) / own.std)[core] - mean) ** 2).sum()) / spread
    found = (calibrated_on + scans - calibrated_on * scans * apart) / 2
    unsure = _SPREAD * (calibrated_on + scans) * math.sqrt(_OF_VOXELS / voxels)
    if found < max(_FEWEST, _SURE * unsure):
        return NONE_SHARED
    inner = ndimage.binary_erosion(core, np.ones([3 if size > 1 else 1 for size in core.shape]))
    if scans >= _FEW and inner.any():
        theirs = np.stack([values[inner[first]] for values in edges]).astype(np.float64)
        counted = _on_the_upper_level(theirs, (_edges(own.mean.astype(np.float64)) / own.std)[inner], calibrated_on)
        if counted is not None and abs(counted - found) <= max(_FEWEST, _SURE * unsure):
            return Shared(counted, True)
    return Shared(min(round(found), calibrated_on, scans))


def _on_the_upper_level(scans: np.ndarray, mean: np.ndarray, calibrated_on: int) -> int | None:
    """How many of the scans, (scans, voxels), are a part of the mean, (voxels,); None where the levels are blurred.

    None also where there is one level only.
    """
    count = len(scans)
    apart = scans - scans.mean(axis=0)
    shares = np.linalg.pinv(apart @ apart.T, rcond=1e-8) @ (apart @ (mean - scans.mean(axis=0))) * calibrated_on
    shares = np.sort(shares)[::-1]
    blurred = []
    for upper in range(min(count, calibrated_on) + 1):
        # Shares of differences from the scans' mean: they add up to 0.
        levels = np.where(np.arange(count) < upper, 1.0, 0.0) - upper / count
        blurred.append(float(np.sqrt(((shares - levels) ** 2).sum() / (count - 1))))
    upper = int(np.argmin(blurred))
    return upper if 0 < upper < count and blurred[upper] <= _BLURRED else None


def _edges(values: np.ndarray) -> np.ndarray:
    return ndimage.laplace(ndimage.laplace(values))


def _fine(values: np.ndarray) -> np.ndarray:
    return values - _blur(values, _COARSE)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(values, [sigma if size > 1 else 0.0 for size in values.shape], truncate=3.0)
