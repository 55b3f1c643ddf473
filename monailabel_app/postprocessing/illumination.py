"""Bring a reconstruction to the illumination of its scan.

What differs between a scan and its reconstruction over several centimetres is the coil's bias field and the scanner's
gain, not a lesion. Left in, it is most of a residual on healthy tissue.
"""

from __future__ import annotations

import numpy as np

from .smooth import gaussian_smooth


def match_illumination(
    image: np.ndarray, reconstruction: np.ndarray, brain_mask: np.ndarray, *, sigma_mm: float, spacing_mm: float = 2.0
) -> np.ndarray:
    """The reconstruction plus the smooth part of the residual: (X, Y, Z) float32 in [0, 1], 0 outside the brain.

    sigma_mm: standard deviation of the Gaussian that defines smooth; 0 returns the reconstruction as it is. A lesion
    loses the share of its contrast that the Gaussian still sees, so sigma_mm is well above the size of lesions.
    """
    if sigma_mm <= 0:
        return np.asarray(reconstruction, dtype=np.float32)
    residual = np.where(brain_mask, image - reconstruction, 0.0)
    smooth = gaussian_smooth(residual, brain_mask, sigma_mm=sigma_mm, spacing_mm=(spacing_mm,) * 3)
    return np.where(brain_mask, np.clip(reconstruction + smooth, 0.0, 1.0), 0.0).astype(np.float32)
