"""Small changes of a preparation, as large as another run, rater or tool would make them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Jitter:
    """Deviations of a preparation: alignment by angle, shift and scale, bias field, and the brain mask's outline.

    outline_voxels: the mask is eroded or dilated by up to this much, or left, with equal chances.
    """

    angle_deg: float = 1.0
    shift_mm: float = 1.0
    scale: float = 0.01
    field: float = 0.03
    field_mm: float = 40.0
    outline_voxels: int = 1


def random_alignment(
    jitter: Jitter, centre_mm: np.ndarray, generator: np.random.Generator, *, in_plane: bool = False
) -> np.ndarray:
    """(4, 4) a random small rotation, scaling and shift about a point, mm -> mm. in_plane: about the z axis only."""
    angles = np.deg2rad(jitter.angle_deg) * generator.normal(size=3)
    scales = 1 + jitter.scale * generator.normal(size=3)
    shift = jitter.shift_mm * generator.normal(size=3)
    if in_plane:
        angles[:2], scales[2], shift[2] = 0.0, 1.0, 0.0
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    rotation = (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(scales)
    matrix[:3, 3] = centre_mm + shift - matrix[:3, :3] @ centre_mm
    return matrix


def random_field(
    jitter: Jitter, shape: tuple[int, int, int], spacing_mm: float, generator: np.random.Generator
) -> np.ndarray:
    """(X, Y, Z) float32 around 1: a smooth factor with a deviation of about ``jitter.field``, as coils leave behind."""
    sigma = jitter.field_mm / spacing_mm
    # Drawn on a coarse grid: nothing finer is in it.
    coarse = [max(2, int(np.ceil(size / sigma)) + 1) for size in shape]
    noise = generator.normal(size=coarse)
    at = np.meshgrid(*(np.linspace(0, c - 1, n) for c, n in zip(coarse, shape, strict=True)), indexing="ij")
    smooth = ndimage.map_coordinates(noise, at, order=3, mode="nearest")
    return np.exp(jitter.field * smooth).astype(np.float32)


def random_outline(jitter: Jitter, brain_mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The brain mask, smaller or larger by whole voxels or as it is; a single slice in its plane."""
    steps = int(generator.integers(-jitter.outline_voxels, jitter.outline_voxels + 1))
    near = ndimage.generate_binary_structure(3, 1)
    if brain_mask.shape[2] == 1:
        near[..., [0, 2]] = False
    if steps > 0:
        return ndimage.binary_dilation(brain_mask, near, iterations=steps)
    if steps < 0:
        eroded = ndimage.binary_erosion(brain_mask, near, iterations=-steps, border_value=0)
        return eroded if eroded.any() else brain_mask
    return brain_mask
