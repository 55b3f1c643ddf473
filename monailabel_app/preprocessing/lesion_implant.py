"""Lesions with exact ground truth: a lesion's shape, blended into a healthy scan.

A model that was trained on healthy scans can be checked on these without a drawn label. They tell how
contrast, size and place govern detection; they do not replace real lesions, which also displace and deform
tissue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume

_GROWTH_STEPS = 20


def implant_lesion(
    image: np.ndarray,
    shape_mask: np.ndarray,
    *,
    contrast: float,
    spacing_mm: Sequence[float],
    edge_sigma_mm: float = 1.0,
    brain_mask: np.ndarray | None = None,
    texture: float = 0.0,
    texture_sigma_mm: float = 2.0,
    generator: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """image * (1 + alpha * (contrast + texture * noise)), with alpha the blurred shape inside the brain.

    image, shape_mask, brain_mask: (X, Y, Z) on one grid; brain_mask defaults to ``image > 0``. contrast: -0.3
    makes each voxel 30 % darker, 0.5 makes it 50 % brighter. The change is relative to every voxel rather
    than towards one value, so the anatomy and noise below stay visible, as they do in oedema and gliosis;
    intensities may leave [0, 1].
    edge_sigma_mm: blur of the border. texture: standard deviation of a smooth random field, as a share of the
    intensity, with correlation length texture_sigma_mm; it needs a generator.

    Returns the new image (X, Y, Z) float32 and the ground truth (X, Y, Z) bool: alpha >= 0.5. alpha is scaled
    to a peak of 1, or lesions smaller than the blur would vanish. Voxels with alpha 0 are left as they were.

    Raises InvalidVolume for shapes that differ, InvalidSettings for a shape that does not meet the brain, a
    contrast below -1, a negative blur or texture, or a texture without a generator.
    """
    image = np.asarray(image, dtype=np.float32)
    brain = image > 0 if brain_mask is None else np.asarray(brain_mask) > 0
    shape_mask = np.asarray(shape_mask) > 0
    if image.ndim != 3 or not image.shape == shape_mask.shape == brain.shape:
        raise InvalidVolume(
            "Expected image, lesion shape and brain mask as (x, y, z) volumes of one shape, "
            f"got {image.shape}, {shape_mask.shape} and {brain.shape}"
        )
    spacing = _checked_spacing(spacing_mm)
    if not contrast >= -1 or not edge_sigma_mm >= 0 or not texture >= 0 or not texture_sigma_mm > 0:
        raise InvalidSettings(
            "Expected contrast >= -1, edge_sigma_mm >= 0, texture >= 0 and texture_sigma_mm > 0, got "
            f"{contrast}, {edge_sigma_mm}, {texture} and {texture_sigma_mm}"
        )
    if texture > 0 and generator is None:
        raise InvalidSettings("Expected a random generator for a lesion with texture, got none")
    if not (shape_mask & brain).any():
        raise InvalidSettings("Expected a lesion shape that meets the brain, got none of its voxels inside")

    alpha = shape_mask.astype(np.float32)
    if edge_sigma_mm > 0:
        alpha = ndimage.gaussian_filter(alpha, edge_sigma_mm / spacing, mode="constant")
    alpha = np.where(brain, alpha, 0)
    alpha = alpha / alpha.max()
    change = np.float32(contrast)
    if texture > 0:
        change = change + texture * _smooth_noise(image.shape, texture_sigma_mm / spacing, generator)
    return (image * np.maximum(1 + alpha * change, 0)).astype(np.float32), alpha >= 0.5


def random_blob(
    shape: Sequence[int],
    generator: np.random.Generator,
    *,
    volume_ml: float,
    spacing_mm: Sequence[float],
    roughness: float = 0.35,
    inside: np.ndarray | None = None,
    centre: Sequence[int] | None = None,
) -> np.ndarray:
    """One connected, irregular, smooth-bordered blob at a random or a given place: (X, Y, Z) bool.

    The voxels nearest to a random centre by a distance that smooth noise distorts by ``roughness`` (0 gives a
    ball). inside: where it may lie (default: everywhere). centre: a voxel of ``inside``, by default drawn from it.
    The volume is met up to a few voxels, or as nearly as the connected part of ``inside`` allows.

    Raises InvalidSettings for a volume that is not positive or larger than ``inside``, a negative roughness, or a
    centre outside; InvalidVolume if ``inside`` has another shape.
    """
    spacing = _checked_spacing(spacing_mm)
    allowed = np.ones(tuple(shape), bool) if inside is None else np.asarray(inside) > 0
    if allowed.shape != tuple(shape) or allowed.ndim != 3:
        raise InvalidVolume(f"Expected a 3-D region of shape {tuple(shape)}, got {allowed.shape}")
    target = max(1, round(1000 * volume_ml / float(np.prod(spacing)))) if volume_ml > 0 else 0
    if not 0 < target <= allowed.sum() or not roughness >= 0:
        raise InvalidSettings(
            f"Expected a volume between 0 and {allowed.sum() * np.prod(spacing) / 1000:.3f} ml and "
            f"roughness >= 0, got {volume_ml} ml and {roughness}"
        )
    radius_mm = (3000 * volume_ml / (4 * np.pi)) ** (1 / 3)
    if centre is None:
        centre = np.argwhere(allowed)[generator.integers(int(allowed.sum()))]
    elif not allowed[tuple(centre)]:
        raise InvalidSettings(f"Expected a centre inside the region, got {tuple(int(c) for c in centre)} outside it")
    centre = np.asarray(centre)
    offsets = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)]
    distance = np.sqrt(sum(o**2 for o in np.meshgrid(*offsets, indexing="ij", sparse=True))) / radius_mm
    level = distance
    if roughness > 0:
        # Vanishing at the centre, the distortion never cuts the blob off from it.
        level = distance * np.exp(roughness * _smooth_noise(shape, radius_mm / 2 / spacing, generator))
    ranked = np.sort(level[allowed])
    # Islands are dropped, so a few more voxels are let in until the central component is large enough.
    count = target
    for _ in range(_GROWTH_STEPS):
        blob = _component_at(centre, allowed & (level <= ranked[count - 1]))
        missing = target - int(blob.sum())
        if missing <= 0 or count == len(ranked):
            break
        count = min(count + missing, len(ranked))
    if missing < 0:  # an island came in whole: what lies furthest out goes
        blob = _component_at(centre, blob & (distance <= np.sort(distance[blob])[target - 1]))
    return blob


def _component_at(voxel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    return labels == labels[tuple(voxel)]


def _smooth_noise(shape: Sequence[int], sigma: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A Gaussian random field of zero mean and unit variance over the volume, float32."""
    field = ndimage.gaussian_filter(generator.standard_normal(tuple(shape), dtype=np.float32), sigma)
    spread = float(field.std())
    return (field - field.mean()) / spread if spread > 0 else np.zeros_like(field)


def _checked_spacing(spacing_mm: Sequence[float]) -> np.ndarray:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not spacing.min() > 0:
        raise InvalidSettings(f"Expected three positive spacings in mm, got {spacing_mm}")
    return spacing
