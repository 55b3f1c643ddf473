"""Structural similarity of feature maps, channel by channel, and the histogram equalisation before the features.

Meissen et al., Unsupervised anomaly localization with structural feature-autoencoders (BrainLes 2022), with the SSIM of
Wang et al. (2004): Gaussian window of 5 positions and standard deviation 1.5.
"""

from __future__ import annotations

from functools import lru_cache

import torch

SIGMA, RADIUS = 1.5, 2
C1, C2 = 1e-4, 9e-4  # as published, on features as they are
_BINS = 256
_PIECE = 2**18  # values


def feature_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """SSIM at every position of two stacks of feature maps: (n, c, h, w) twice -> (n, c, h, w) float32 in [-1, 1].

    The window is reflected at the borders. h and w of at least 3. Computed in float32 whatever comes in: variances are
    small differences of large squares.
    """
    with torch.autocast(first.device.type, enabled=False):
        count = len(first)
        if first.device.type == "cpu":
            # Pieces that stay in the processor's cache: three times as fast.
            count = max(1, _PIECE // max(1, first[0].numel()))
        pairs = zip(first.float().split(count), second.float().split(count), strict=True)
        return torch.cat([_ssim(x, y) for x, y in pairs])


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows, columns = (_averaging(size, str(x.device)) for size in x.shape[-2:])

    def mean(values: torch.Tensor) -> torch.Tensor:
        return rows @ (values @ columns.T)

    mean_x, mean_y = mean(x), mean(y)
    variances = (mean(x * x) - mean_x**2).clamp(min=0) + (mean(y * y) - mean_y**2).clamp(min=0)
    product = mean_x * mean_y
    luminance = (2 * product + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance * (2 * (mean(x * y) - product) + C2) / (variances + C2)


def equalized(slices: torch.Tensor) -> torch.Tensor:
    """Histogram equalisation of each slice over its voxels above 0: (n, 1, X, Y) in [0, 1] -> the same, background 0.

    A voxel becomes the share of voxels of its slice that are not brighter, in 256 bins.
    """
    flat = slices.float().flatten(1)
    bins = (flat.clamp(0, 1) * (_BINS - 1)).round().long()
    counts = flat.new_zeros(len(flat), _BINS).scatter_add_(1, bins, (flat > 0).float())
    share = counts.cumsum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.where(flat > 0, share.gather(1, bins), 0).view_as(slices)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # What is first made for an analysis must serve the gradients of a training, too.
def _averaging(size: int, device: str) -> torch.Tensor:
    """(size, size): the Gaussian average along one axis, with reflection that does not repeat the edge."""
    taps = torch.arange(-RADIUS, RADIUS + 1)
    window = torch.exp(-0.5 * (taps.double() / SIGMA) ** 2)
    places = (torch.arange(size)[:, None] + taps).abs()
    places = torch.where(places >= size, 2 * (size - 1) - places, places)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, places, (window / window.sum()).expand(size, -1).contiguous())
    return matrix.float().to(device)
