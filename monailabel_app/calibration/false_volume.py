"""How much of a healthy scan is marked, in ml, at every threshold at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from monailabel_app.types import CONNECTIVITY_26

SMALLEST_LESION_ML = 0.1  # what is smaller is dropped from a mask unless somebody asks for it
_OFFSETS = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)]
_FIRST_CHUNK = 16384


@dataclass(frozen=True)
class FalseVolumeCurve:
    """The marked volume of one map as its threshold falls, as far down as ``limit_ml``.

    values: (voxels,) float32, highest first. marked_ml: (voxels,) volume of all components that are not too small once
    these voxels are above the threshold. complete: whether every voxel above 0 is among them.
    """

    values: np.ndarray
    marked_ml: np.ndarray
    complete: bool

    def least_threshold(self, limit_ml: float) -> float:
        """The least threshold at which no more than ``limit_ml`` is marked; 0 where that never happens.

        limit_ml: no larger than the one that the curve was made for.
        """
        over = np.flatnonzero(self.marked_ml > limit_ml)
        return float(self.values[over[0]]) if len(over) else 0.0

    def at(self, threshold: float) -> float | None:
        """The volume marked at a threshold in ml; None for a threshold below the curve's end."""
        if not self.complete and threshold < self.values[-1]:
            return None
        above = int(np.searchsorted(-self.values, -np.float32(threshold), side="left"))
        return float(self.marked_ml[above - 1]) if above else 0.0


def false_volume_curve(
    anomaly_map: np.ndarray,
    *,
    limit_ml: float,
    voxel_mm3: float = 8.0,
    smallest_ml: float = SMALLEST_LESION_ML,
) -> FalseVolumeCurve:
    """The curve of one calibrated map (X, Y, Z), 0 outside what is analysed.

    Components are those of 26 neighbours, as in the masks. Voxels are taken in falling order and joined to their
    neighbours (union-find), which gives the volume at all thresholds in one sweep. It ends once more than limit_ml is
    marked: a component of a higher threshold lies inside one of a lower, so the volume never falls again.
    """
    padded = np.pad(np.asarray(anomaly_map, dtype=np.float32), 1)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    neighbours = [int(np.dot(offset, strides)) for offset in _OFFSETS]
    smallest = _smallest_voxels(smallest_ml, voxel_mm3)
    limit = limit_ml * 1000 / voxel_mm3
    flat = padded.ravel()
    parent: dict[int, int] = {}
    size: dict[int, int] = {}
    marked: list[int] = []
    now = 0
    order = _falling(flat, _FIRST_CHUNK)
    while True:
        for voxel in order[len(marked) :].tolist():
            root, count = voxel, 1
            parent[voxel] = voxel
            for offset in neighbours:
                other = voxel + offset
                if other not in parent:
                    continue
                while parent[other] != other:
                    parent[other] = parent[parent[other]]
                    other = parent[other]
                if other == root:
                    continue
                joined = size[other]
                now -= joined if joined >= smallest else 0
                if joined > count:
                    parent[root], root = other, other
                else:
                    parent[other] = root
                count += joined
                size[root] = count
            size[root] = count
            now += count if count >= smallest else 0
            marked.append(now)
            # Voxels of one value come above the threshold together: all of them belong to the curve.
            if now > limit and (len(marked) == len(order) or flat[order[len(marked)]] < flat[voxel]):
                break
        if now > limit or len(order) == int((flat > 0).sum()):
            break
        order = _falling(flat, 4 * len(order))
    values = flat[order[: len(marked)]]
    volumes = np.array(marked, dtype=np.float64) * voxel_mm3 / 1000
    # Among equal values only the last count is one that a threshold can give.
    last = np.searchsorted(-values, -values, side="right") - 1
    return FalseVolumeCurve(values, volumes[last], now <= limit)


def false_volume_ml(
    anomaly_map: np.ndarray,
    threshold: float,
    *,
    voxel_mm3: float = 8.0,
    smallest_ml: float = SMALLEST_LESION_ML,
) -> float:
    """The marked volume of one map (X, Y, Z) at one threshold, after components and the smallest volume, in ml."""
    labels, count = ndimage.label(anomaly_map > threshold, structure=CONNECTIVITY_26)
    if not count:
        return 0.0
    sizes = np.bincount(labels.ravel())[1:]
    return int(sizes[sizes >= _smallest_voxels(smallest_ml, voxel_mm3)].sum()) * voxel_mm3 / 1000


def volume_at(curve: FalseVolumeCurve, anomaly_map: np.ndarray, threshold: float) -> float:
    """The marked volume from the curve where it reaches that far, else from the map it was made of; in ml."""
    known = curve.at(threshold)
    return false_volume_ml(anomaly_map, threshold) if known is None else known


def of_patients(values: Sequence[float], patients: Sequence[str]) -> np.ndarray:
    """One value per patient: the largest of all scans, (patients,)."""
    array = np.asarray(values, dtype=np.float64)
    names = np.array(patients)
    return np.array([array[names == name].max() for name in dict.fromkeys(patients)])


def _smallest_voxels(smallest_ml: float, voxel_mm3: float) -> int:
    return max(1, int(np.ceil(smallest_ml * 1000 / voxel_mm3 - 1e-9)))


def _falling(flat: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest ``count`` values above 0 (all where there are fewer), and of those equal to the last."""
    positive = np.flatnonzero(flat > 0)
    if len(positive) > count:
        least = np.partition(flat[positive], len(positive) - count)[len(positive) - count]
        positive = positive[flat[positive] >= least]
    return positive[np.argsort(-flat[positive], kind="stable")]
