"""Robust intensity normalisation inside the brain."""

from __future__ import annotations

import numpy as np

from monailabel_app.errors import InvalidVolume

LOW_PERCENTILE, HIGH_PERCENTILE, HIGH_LEVEL = 1.0, 98.0, 0.8
SLICE_PERCENTILES, MEDIAN_PERCENTILES, MEDIAN_LEVEL = (5.0, 50.0), (1.0, 50.0), 0.4


def normalize_intensity(image: np.ndarray, brain_mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Map the brain's 1st percentile to 0 and its 98th to 0.8, clip to [0, 1], zero outside the brain.

    The headroom above 0.8 keeps hyperintense lesions from being clipped away. Percentiles, not extremes, keep a
    lesion from moving the scale of the healthy tissue much, as long as what is brighter than all healthy tissue is
    less than 2 % of the brain and what is darker less than 1 %.

    image: (x, y, z) float. brain_mask: (x, y, z) bool. Returns the float32 image and the (low, high) input values.
    Raises InvalidVolume when the brain has no contrast.
    """
    return _between_percentiles(image, brain_mask, (LOW_PERCENTILE, HIGH_PERCENTILE), HIGH_LEVEL)


def normalize_slice(image: np.ndarray, brain_mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """``normalize_median`` for a single FLAIR slice through the ventricles: its 5th percentile, fluid, goes to 0.

    A slice has fewer voxels and a rim that is known less well, so that its 1st percentile is less reliable.
    """
    return _between_percentiles(image, brain_mask, SLICE_PERCENTILES, MEDIAN_LEVEL)


def normalize_median(image: np.ndarray, brain_mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Map the brain's 1st percentile to 0 and its median to 0.4, clip to [0, 1], zero outside the brain.

    In a single slice through the ventricles, or with a large tumour, a lesion easily covers a tenth of the brain: it
    would set the 98th percentile and make all other tissue look dark. The median hardly moves.

    image: (x, y, z) float. brain_mask: (x, y, z) bool. Returns the float32 image and the (low, median) input values.
    Raises InvalidVolume when the brain has no contrast.
    """
    return _between_percentiles(image, brain_mask, MEDIAN_PERCENTILES, MEDIAN_LEVEL)


def grey_values(image: np.ndarray, kind: str, low: float, high: float) -> np.ndarray:
    """A normalised image (x, y, z) in the grey values of its scan: undoes NORMALIZATIONS[kind], but for the clipping.

    low, high: the input values that the normalisation returned. ``median`` is that of slices, too.
    """
    level = HIGH_LEVEL if kind == "percentile" else MEDIAN_LEVEL
    return (image * np.float32((high - low) / level) + np.float32(low)).astype(np.float32)


def _between_percentiles(
    image: np.ndarray, brain_mask: np.ndarray, percentiles: tuple[float, float], level: float
) -> tuple[np.ndarray, tuple[float, float]]:
    inside = image[brain_mask]
    if inside.size == 0:
        raise InvalidVolume("expected a brain mask with voxels in it, got an empty one; check the brain extraction")
    low, high = (float(v) for v in np.percentile(inside, percentiles))
    if not high > low:
        raise InvalidVolume(
            f"expected an image with contrast inside the brain, got the constant value {low:g}; "
            "check that the right series was sent"
        )
    scaled = (image - low) * np.float32(level / (high - low))
    return np.where(brain_mask, np.clip(scaled, 0.0, 1.0), 0.0).astype(np.float32), (low, high)


# What a model's config.yaml may name. ``percentile`` is the default.
NORMALIZATIONS = {"percentile": normalize_intensity, "median": normalize_median}
