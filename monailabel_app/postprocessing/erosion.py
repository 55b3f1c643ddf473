"""Taking the rim off a brain mask, where misalignment and partial volume make every scan look anomalous."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.boxes import bounding_box


def erode_brain(brain_mask: np.ndarray, *, distance_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Brain voxels further than distance_mm from the nearest voxel that is not brain: (X, Y, Z) bool.

    Distances are Euclidean between voxel centres; everything beyond the volume's border counts as not brain, but not
    across an axis of size 1: a single slice is eroded in its plane.
    distance_mm 0 returns the mask. Raises InvalidSettings for a negative distance or spacing.
    """
    spacing = tuple(float(v) for v in spacing_mm)
    if not distance_mm >= 0 or len(spacing) != 3 or not min(spacing) > 0:
        raise InvalidSettings(
            f"Expected distance_mm >= 0 and three positive spacings, got {distance_mm} and {spacing}"
        )
    inside = np.asarray(brain_mask) > 0
    box = bounding_box(inside)
    if distance_mm == 0 or box is None:
        return inside
    margin = [1 if size > 1 else 0 for size in inside.shape]
    padded = np.pad(inside[box], [(m, m) for m in margin])
    distance = ndimage.distance_transform_edt(padded, sampling=spacing)
    eroded = np.zeros_like(inside)
    eroded[box] = distance[tuple(slice(m, n - m) for m, n in zip(margin, padded.shape, strict=True))] > distance_mm
    return eroded
