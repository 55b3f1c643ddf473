"""Healthy T1 brains in other contrasts, for sites that have healthy T1 scans only.

In the spirit of SynthSeg (Billot et al., MedIA 2023), but from the scan instead of from a label map alone: where
each voxel lies between the scan's own CSF, grey and white matter is read off its T1 intensity, which keeps partial
volume and fine anatomy, and region labels shift what a tissue's mean does not tell (deep grey matter, single gyri).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume

from .head_synthesis import CSF_LABELS, DEEP_LABELS, WHITE_LABELS
from .normalize import normalize_median

_LABELS = 256


@dataclass(frozen=True)
class Contrast:
    """Ranges of mean grey values: csf and grey matter, white matter as a share of grey, deep grey minus grey."""

    csf: tuple[float, float]
    grey: tuple[float, float]
    white: tuple[float, float]
    deep: tuple[float, float] = (-0.08, 0.08)


# Typical for clinical scanners.
CONTRASTS: Mapping[str, Contrast] = MappingProxyType(
    {
        "t1": Contrast((0.05, 0.25), (0.45, 0.6), (1.25, 1.6)),
        "t2": Contrast((0.85, 1.1), (0.45, 0.62), (0.62, 0.85), (-0.14, 0.0)),
        "flair": Contrast((0.02, 0.2), (0.6, 0.75), (0.7, 0.92), (-0.12, 0.03)),
        "pd": Contrast((0.6, 1.0), (0.75, 0.9), (0.78, 0.95), (-0.1, 0.02)),
        "any": Contrast((0.0, 1.1), (0.3, 0.9), (0.6, 1.6), (-0.15, 0.15)),
    }
)


def change_contrast(
    image: np.ndarray,
    brain_mask: np.ndarray,
    labels: np.ndarray,
    contrast: str,
    generator: np.random.Generator,
) -> np.ndarray:
    """A healthy T1 brain as another sequence might show it: (X, Y, Z) float32, normalised by its median.

    image: (X, Y, Z) float32 in [0, 1], a normalised T1 brain on the 2 mm model grid. labels: (X, Y, Z) DLMUSE regions
    on the same grid. contrast: of CONTRASTS. Drawn anew at every call: tissue means, offset of each region, texture,
    bias, noise, and slices up to 6 mm thick along one axis. Raises InvalidSettings for an unknown contrast and
    InvalidVolume for shapes that differ or labels without the three tissues.
    """
    if contrast not in CONTRASTS:
        raise InvalidSettings(f"expected a contrast out of {', '.join(CONTRASTS)}, got {contrast!r}")
    if not image.shape == brain_mask.shape == labels.shape or image.ndim != 3:
        raise InvalidVolume(
            f"expected image, mask and labels of one shape (X, Y, Z), got {image.shape}, {brain_mask.shape} and "
            f"{labels.shape}"
        )
    ranges = CONTRASTS[contrast]
    place = _place_between_tissues(image, labels)
    grey = generator.uniform(*ranges.grey)
    values = [generator.uniform(*ranges.csf), grey, grey * generator.uniform(*ranges.white)]
    # Beyond the outer means the curve goes on at a slope of its own: vessels, fat, noise.
    ends = [values[0] + generator.normal(0, 0.05), values[2] + generator.normal(0, 0.05)]
    made = np.interp(place, [-1.0, 0.0, 1.0, 2.0, 3.0], [ends[0], *values, ends[1]]).astype(np.float32)

    offsets = generator.normal(0, 0.02, _LABELS)
    deep = generator.uniform(*ranges.deep)
    for label in DEEP_LABELS:
        offsets[label] += deep
    offsets[0] = 0.0
    made += ndimage.gaussian_filter(offsets[labels].astype(np.float32), 0.7)

    # Relative to the contrast there is: normalisation will stretch a flat image together with its noise.
    spread = max(values) - min(values)
    made += spread * generator.uniform(0.0, 0.06) * _smooth_field(image.shape, generator, 1.2)
    made *= np.exp(generator.uniform(0.0, 0.12) * _smooth_field(image.shape, generator, 14.0))
    thick = float(generator.choice((0.0, 0.0, 0.6, 1.0, 1.3)))
    sigma = [float(generator.uniform(0.0, 0.5))] * 3
    sigma[int(generator.choice((0, 1, 2), p=(0.15, 0.15, 0.7)))] = max(thick, sigma[0])
    made = ndimage.gaussian_filter(made * brain_mask, sigma)
    noise = spread * generator.uniform(0.0, 0.04)
    made = np.hypot(
        made + noise * generator.standard_normal(image.shape, dtype=np.float32),
        noise * generator.standard_normal(image.shape, dtype=np.float32),
    )
    return normalize_median(made.astype(np.float32), brain_mask)[0]


def _place_between_tissues(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0 at the scan's CSF, 1 at its cortex, 2 at its white matter, straight lines between and beyond."""
    cortex = (labels >= 100) & (labels < 208)
    parts = (np.isin(labels, list(CSF_LABELS)), cortex, np.isin(labels, list(WHITE_LABELS)))
    if not all(part.any() for part in parts):
        raise InvalidVolume("expected region labels with CSF, cortex and white matter, found not all of them")
    csf, grey, white = (float(np.median(image[part])) for part in parts)
    # A floor on the distances: in a brain with little contrast the order still holds.
    grey = max(grey, csf + 0.05)
    white = max(white, grey + 0.05)
    step = grey - csf
    return np.interp(image, [csf - step, csf, grey, white, white + step], [-1.0, 0.0, 1.0, 2.0, 3.0])


def _smooth_field(shape: tuple[int, ...], generator: np.random.Generator, sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(generator.standard_normal(shape, dtype=np.float32), sigma)
    return field / max(float(field.std()), 1e-6)
