"""Structural similarity at eight kernel widths, combined voxel by voxel with adaptive weights.

Behrendt et al., Diffusion models with ensembled structure-based anomaly scoring for unsupervised anomaly
detection, ISBI 2024. With s_k the SSIM map for the Gaussian window of standard deviation sigma_k:

    w_k = softmax_k(-s_k / temperature),    A = (1 - sum_k w_k s_k) * brain_mask

The published score has temperature 1; a lower one moves the weights towards the least similar width. The data
range is fixed, where the published code takes it from each pair of volumes: a fixed range gives one score the
same meaning in every scan.

SSIM is computed from the sum p = x + y and the difference m = x - y (E and V: Gaussian mean and variance):

    SSIM = (E[p]^2 - E[m]^2 + 2 C1) / (E[p]^2 + E[m]^2 + 2 C1) * (V[p] - V[m] + 2 C2) / (V[p] + V[m] + 2 C2)

which is the usual formula, from four averages in place of five, and in float32 exactly 1 where x and y agree,
since the rounding of V[p] cancels. The window is separable, so an average along one axis is a product with a
banded matrix that holds the reflection at the borders. Slabs along the first axis bound the memory and keep
it in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring.inputs import ArrayLike, score_inputs

SIGMAS = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7)
_K1, _K2 = 0.01, 0.03
_MIN_TEMPERATURE = 0.02  # exp(+-1 / 0.02) still fits float32 with room for the sum over widths
_SLAB_VOXELS = 2**17


def ssim_ensemble(
    image: ArrayLike,
    reconstruction: ArrayLike,
    brain_mask: ArrayLike,
    *,
    sigmas: Sequence[float] = SIGMAS,
    temperature: float = 1.0,
    data_range: float = 1.0,
) -> np.ndarray:
    """1 - ensembled SSIM inside the brain, 0 outside: (X, Y, Z) float32, between 0 (alike) and 2.

    sigmas: window widths in voxels. Raises InvalidSettings for a temperature below 0.02 or a width or data
    range that is not positive, InvalidVolume for an axis too short for the widest window's reflection (an axis of
    size 1 is not averaged along).
    """
    if not temperature >= _MIN_TEMPERATURE:
        raise InvalidSettings(f"Expected a temperature of at least {_MIN_TEMPERATURE}, got {temperature}")
    image, reconstruction, brain_mask = score_inputs(image, reconstruction, brain_mask)
    radii = _radii(sigmas, data_range, image.shape)
    result = torch.empty_like(image)
    depth = image.shape[0]
    step = max(1, _SLAB_VOXELS // image[0].numel())
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        low, high = max(0, start - max(radii)), min(depth, stop + max(radii))
        moments = _moments(image[low:high], reconstruction[low:high], data_range)
        weighted, total = 0.0, 0.0
        for sigma in sigmas:
            similarity = _slab_ssim(moments, depth, start, stop, low, high, sigma, data_range)
            weight = torch.exp(similarity / -temperature)
            weighted, total = weighted + weight * similarity, total + weight
        result[start:stop] = 1 - weighted / total
    return (result * brain_mask).cpu().numpy()


def ssim_map(
    image: ArrayLike, reconstruction: ArrayLike, sigma: float, *, data_range: float = 1.0
) -> torch.Tensor:
    """SSIM at every voxel for one Gaussian window: (X, Y, Z) float32 in [-1, 1].

    Float32 keeps about four decimals of it. The window has 2 * int(3.5 * sigma + 0.5) + 1 taps per axis; K1 =
    0.01 and K2 = 0.03 (Wang et al., 2004). Raises as ssim_ensemble does.
    """
    image = torch.as_tensor(image)
    image, reconstruction, _ = score_inputs(image, reconstruction, torch.ones_like(image))
    _radii([sigma], data_range, image.shape)
    depth = image.shape[0]
    return _slab_ssim(
        _moments(image, reconstruction, data_range), depth, 0, depth, 0, depth, sigma, data_range
    )


def kernel_radius(sigma: float) -> int:
    """Taps on each side of the centre of the window."""
    return int(3.5 * sigma + 0.5)


def _radii(sigmas: Sequence[float], data_range: float, shape: Sequence[int]) -> list[int]:
    if len(sigmas) == 0 or min(sigmas) <= 0 or not data_range > 0:
        raise InvalidSettings(
            "Expected positive window widths and data range, "
            f"got sigmas={tuple(sigmas)}, data_range={data_range}"
        )
    radii = [kernel_radius(sigma) for sigma in sigmas]
    if min((size for size in shape if size > 1), default=0) <= max(radii):
        raise InvalidVolume(
            f"Expected more than {max(radii)} voxels along each axis for a window of sigma {max(sigmas)}, "
            f"got a volume of shape {tuple(shape)}"
        )
    return radii


def _moments(x: torch.Tensor, y: torch.Tensor, data_range: float) -> torch.Tensor:
    """(4, X, Y, Z): sum, difference and their squares; the sum is centred, as V loses digits far from 0."""
    plus, minus = x + y - data_range, x - y
    return torch.stack([plus, minus, plus * plus, minus * minus])


def _slab_ssim(
    moments: torch.Tensor,
    depth: int,
    start: int,
    stop: int,
    low: int,
    high: int,
    sigma: float,
    data_range: float,
) -> torch.Tensor:
    """SSIM of slices start..stop of a volume of ``depth`` slices, from the moments (4, high - low, Y, Z)."""
    device = str(moments.device)
    along_x = _averaging_matrix(depth, sigma, device)[start:stop, low:high].contiguous()
    channels, _, size_y, size_z = moments.shape
    averaged = torch.matmul(along_x, moments.reshape(channels, high - low, size_y * size_z))
    averaged = averaged.reshape(channels, stop - start, size_y, size_z)
    averaged = torch.matmul(_averaging_matrix(size_y, sigma, device), averaged)
    averaged = torch.matmul(averaged, _averaging_matrix(size_z, sigma, device).T)
    mean_sum, mean_difference, square_sum, square_difference = averaged
    variance_sum = (square_sum - mean_sum * mean_sum).clamp_(min=0)
    squared_sum = (mean_sum + data_range).square_()
    squared_difference = mean_difference * mean_difference
    variance_difference = (square_difference - squared_difference).clamp_(min=0)
    c1, c2 = 2 * (_K1 * data_range) ** 2, 2 * (_K2 * data_range) ** 2
    luminance = (squared_sum - squared_difference + c1) / (squared_sum + squared_difference + c1)
    structure = (variance_sum - variance_difference + c2) / (variance_sum + variance_difference + c2)
    return luminance * structure


@lru_cache(maxsize=64)
def _averaging_matrix(size: int, sigma: float, device: str) -> torch.Tensor:
    """(size, size) float32: Gaussian average along one axis with reflection that does not repeat the edge."""
    if size == 1:
        return torch.ones((1, 1), device=device)  # a single slice is averaged in its plane
    radius = kernel_radius(sigma)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (taps / sigma) ** 2)
    window = window / window.sum()
    rows = torch.arange(size)[:, None].expand(size, len(taps))
    columns = (rows + taps.long()).abs()
    columns = torch.where(columns > size - 1, 2 * (size - 1) - columns, columns)
    matrix = torch.zeros((size, size), dtype=torch.float64)
    matrix.index_put_((rows, columns), window.expand(size, -1), accumulate=True)
    return matrix.float().to(device)
