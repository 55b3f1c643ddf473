"""Raw anomaly maps from an image and its pseudo-healthy reconstruction.

``SCORES`` lists the scores that share one signature, ``score(image, reconstruction, brain_mask) -> map``:
arrays or tensors (X, Y, Z), intensities in [0, 1], a float32 array back, zero outside the brain mask.

The functions are not re-exported: ``scoring.ssim_ensemble`` is the module.
"""

from collections.abc import Callable

import numpy as np

from monailabel_app.scoring.residual import l1_residual, signed_residual, squared_residual
from monailabel_app.scoring.ssim_ensemble import ssim_ensemble as _ssim_ensemble
from monailabel_app.scoring.wasserstein import mse_patch_map, wasserstein_map

SCORES: dict[str, Callable[..., np.ndarray]] = {
    "l1": l1_residual,
    "squared": squared_residual,
    "signed": signed_residual,
    # One sign only, decided after standardising and smoothing: what lies the other way counts as nothing.
    "brighter": signed_residual,
    "darker": lambda image, reconstruction, mask: -signed_residual(image, reconstruction, mask),
    "ssim_ensemble": _ssim_ensemble,
    "wasserstein": wasserstein_map,
    "mse_patch": mse_patch_map,
}
