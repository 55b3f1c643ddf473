"""Working on the part of a volume that holds something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bounding_box(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...] | None:
    """The smallest box around a (x, y, z) mask plus a margin in voxels, as slices; None if the mask is
    empty."""
    slices = []
    for axis, extra in enumerate(margin):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if not len(occupied):
            return None
        slices.append(slice(max(0, int(occupied[0]) - extra), int(occupied[-1]) + 1 + extra))
    return tuple(slices)
