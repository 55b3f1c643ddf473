"""Threshold an anomaly map and measure what stands out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.postprocessing.boxes import bounding_box
from monailabel_app.types import CONNECTIVITY_26, Lesion

# Lesions under a larger limit than this would not fit into a brain.
LARGEST_VOLUME_LIMIT_ML = 1000.0


def find_lesions(
    anomaly_map: np.ndarray,
    brain_mask: np.ndarray,
    affine: np.ndarray,
    *,
    threshold: float,
    min_volume_mm3: float = 0.0,
    regions: np.ndarray | None = None,
    region_names: Mapping[int, str] | None = None,
) -> tuple[np.ndarray, tuple[Lesion, ...]]:
    """The 26-connected components of ``anomaly_map > threshold`` inside the brain.

    anomaly_map, brain_mask: (x, y, z); affine: (4, 4) voxel index -> RAS mm. Components smaller than
    min_volume_mm3 are dropped. regions: (x, y, z) integer labels of a parcellation on the same grid, 0 =
    none; a lesion's region is the name of the label it has most voxels in (the lowest label on a tie), or ""
    where it meets no named label.

    Returns the mask (x, y, z) uint8 (1 = anomaly) and its lesions, largest first, numbered from 1. The
    centroid is the unweighted mean of voxel indices. Nothing above the threshold gives an empty mask and no
    lesions.

    Raises InvalidVolume for shapes that differ or a map with NaN inside the brain, InvalidSettings for a
    threshold that is NaN or a negative volume.
    """
    shape = np.shape(anomaly_map)
    for name, other in (("brain mask", brain_mask), ("regions", regions)):
        if other is not None and (np.shape(other) != shape or len(shape) != 3):
            raise InvalidVolume(
                f"Expected the anomaly map and the {name} as (x, y, z) volumes of one shape, "
                f"got {shape} and {np.shape(other)}"
            )
    if np.isnan(threshold) or not min_volume_mm3 >= 0:
        raise InvalidSettings(
            f"Expected a threshold and a volume >= 0, got threshold={threshold}, min_volume_mm3={min_volume_mm3}"
        )
    inside = np.asarray(brain_mask) > 0
    if np.isnan(anomaly_map[inside]).any():
        raise InvalidVolume("Expected an anomaly map without NaN inside the brain")
    above = inside & (anomaly_map > threshold)
    mask = np.zeros(shape, dtype=np.uint8)
    box = bounding_box(above)
    if box is None:
        return mask, ()

    labels, _ = ndimage.label(above[box], structure=CONNECTIVITY_26)
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    sizes = np.bincount(labels.ravel())
    keep = sizes * voxel_mm3 >= min_volume_mm3
    keep[0] = False
    # New label of each old one: 1 for the largest component kept, and so on; ties in the order of first
    # appearance.
    order = np.flatnonzero(keep)
    order = order[np.argsort(-sizes[order], kind="stable")]
    rank = np.zeros(len(sizes), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    labels = rank[labels]
    mask[box] = labels > 0
    if not len(order):
        return mask, ()
    return mask, _measure(labels, anomaly_map[box], box, affine, voxel_mm3, regions, region_names or {})


def _measure(
    labels: np.ndarray,
    scores: np.ndarray,
    box: tuple[slice, ...],
    affine: np.ndarray,
    voxel_mm3: float,
    regions: np.ndarray | None,
    region_names: Mapping[int, str],
) -> tuple[Lesion, ...]:
    """One Lesion for each label 1..n of a box of the volume."""
    at = np.nonzero(labels)
    lesion = labels[at] - 1
    count = int(lesion.max()) + 1
    sizes = np.bincount(lesion, minlength=count)
    values = scores[at].astype(np.float64)
    means = np.bincount(lesion, values, count) / sizes
    peaks = np.full(count, -np.inf)
    np.maximum.at(peaks, lesion, values)
    highest = np.flatnonzero(values == peaks[lesion])
    _, first = np.unique(lesion[highest], return_index=True)
    summits = np.stack([axis[highest[first]] + part.start for axis, part in zip(at, box, strict=True)], axis=1)
    centroids = np.stack(
        [np.bincount(lesion, axis, count) / sizes + part.start for axis, part in zip(at, box, strict=True)],
        axis=1,
    )
    affine = np.asarray(affine, dtype=np.float64)
    world = centroids @ affine[:3, :3].T + affine[:3, 3]
    names = [""] * count
    if regions is not None:
        names = _majority_names(lesion, regions[box][at], count, region_names)
    return tuple(
        Lesion(
            index=i + 1,
            volume_ml=float(sizes[i] * voxel_mm3 / 1000),
            centroid_voxel=tuple(centroids[i].tolist()),
            centroid_ras_mm=tuple(world[i].tolist()),
            mean_score=float(means[i]),
            peak_score=float(peaks[i]),
            region=names[i],
            peak_voxel=tuple(summits[i].tolist()),
        )
        for i in range(count)
    )


def _majority_names(lesion: np.ndarray, region: np.ndarray, count: int, region_names: Mapping[int, str]) -> list[str]:
    """For each lesion the name of its most frequent named region."""
    known, column = np.unique(region, return_inverse=True)
    table = np.zeros((count, len(known)), dtype=np.int64)
    np.add.at(table, (lesion, column.ravel()), 1)
    named = np.array([int(label) != 0 and int(label) in region_names for label in known])
    table[:, ~named] = 0
    best = table.argmax(axis=1)
    return [region_names[int(known[best[i]])] if table[i, best[i]] > 0 else "" for i in range(count)]
