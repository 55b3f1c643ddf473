"""Anomalies that leave a place's grey values as they were: tissue that swells, shrinks or is shuffled.

What a comparison of grey values cannot see (Meissen et al., Pitfalls of anomaly segmentation by reconstruction error,
2022, use the same three). Shuffling keeps the place's histogram exactly, a deformation nearly: it moves tissue within
a ball whose surface stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings

_BLOCK_VOXELS = 2


def deform_ball(
    image: np.ndarray,
    brain_mask: np.ndarray,
    centre: Sequence[float],
    *,
    radius_mm: float,
    strength: float,
    spacing_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Swell (strength > 0) or shrink (strength < 0) the tissue around ``centre`` (voxel index) within a ball.

    A voxel at the share u of the radius shows what lay at u (1 - strength (1 - u^2)^2) before: the identity at the
    surface, no folds for strengths in (-1.25, 1). Tissue is never drawn from outside the brain: there, the nearest
    brain voxel's value stands in.

    image: (X, Y, Z) float32, brain_mask: (X, Y, Z) bool. Returns the image and the ball's part in the brain
    (X, Y, Z) bool. Raises InvalidSettings for a strength that folds, or a ball that does not meet the brain.
    """
    if not -1.25 < strength < 1 or strength == 0 or not radius_mm > 0:
        raise InvalidSettings(
            f"expected a radius above 0 and a strength in (-1.25, 1) other than 0, got {radius_mm} and {strength}"
        )
    grids = np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij")
    offsets = [grid - c for grid, c in zip(grids, centre, strict=True)]
    share = sum((offset * step) ** 2 for offset, step in zip(offsets, spacing_mm, strict=True)) / radius_mm**2
    ball = (share < 1) & brain_mask
    if not ball.any():
        raise InvalidSettings("expected a ball that meets the brain, got one outside; move its centre")
    factor = 1 - strength * (1 - share[ball]) ** 2
    places = [c + offset[ball] * factor for offset, c in zip(offsets, centre, strict=True)]
    nearest = ndimage.distance_transform_edt(~brain_mask, return_distances=False, return_indices=True)
    filled = image[tuple(nearest)]
    made = image.copy()
    made[ball] = ndimage.map_coordinates(filled, places, order=1, mode="nearest")
    return made, ball


def shuffle_voxels(image: np.ndarray, place: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The voxels of ``place`` (X, Y, Z) bool in a random order; the histogram is exactly what it was."""
    made = image.copy()
    made[place] = generator.permutation(image[place])
    return made


def shuffle_blocks(
    image: np.ndarray, place: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 2 voxels' width that lie wholly in ``place`` exchanged among each other, none staying where it was.

    Returns the image and the voxels of the blocks (X, Y, Z) bool. Raises InvalidSettings where fewer than two blocks
    fit into the place.
    """
    size = tuple(min(_BLOCK_VOXELS, n) for n in image.shape)
    first = np.argwhere(place).min(axis=0) if place.any() else np.zeros(3, int)
    # The blocks' lattice starts at the place's own corner: a small place would lose too much to a fixed one.
    starts = [range(int(f), n - s + 1, s) for f, n, s in zip(first, image.shape, size, strict=True)]
    candidates = (tuple(slice(a, a + s) for a, s in zip(at, size, strict=True)) for at in product(*starts))
    blocks = [block for block in candidates if place[block].all()]
    if len(blocks) < 2:
        raise InvalidSettings(f"expected room for at least two blocks of {size} voxels, got {len(blocks)}")
    order = generator.permutation(len(blocks))
    made, moved = image.copy(), np.zeros(image.shape, bool)
    for target, source in zip(order, np.roll(order, 1), strict=True):
        made[blocks[target]] = image[blocks[source]]
        moved[blocks[target]] = True
    return made, moved
