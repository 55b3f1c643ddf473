"""What is usual at every place of a healthy brain, on a coarse grid that travels in a network's buffers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_SMOOTHING = 1.0  # grid cells
_PRIOR = 4.0  # samples: how strongly a place with few is drawn towards the brain's spread
_FLOOR = 0.1  # quantile of the spread below which no place goes


class LocationStatistics(nn.Module):
    """Healthy mean and deviation per place, and the limit that few healthy standardised values exceed.

    grid: cells along x, y and z of the field of view, whatever its number of voxels; a stack of one slice knows no z.
    """

    def __init__(self, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.register_buffer("mean", torch.zeros(self.grid))
        self.register_buffer("std", torch.ones(self.grid))
        self.register_buffer("limit", torch.zeros(()))
        self.register_buffer("known", torch.zeros(()))

    @torch.no_grad()
    def learn(self, maps: torch.Tensor, inside: torch.Tensor, heights: torch.Tensor, quantile: float) -> None:
        """From healthy slices: maps (n, A, B), inside (n, A, B) bool, heights (n,) of each slice in 0..1, or NaN.

        A height of NaN stands for every height: there was one slice per brain. ``limit`` becomes the given quantile of
        the standardised healthy values.
        """
        maps, weights = maps.float(), inside.float()
        band = (heights.nan_to_num(0.5) * self.grid[2]).long().clamp(0, self.grid[2] - 1)
        count, total, square = (
            self._banded(functional.adaptive_avg_pool2d(values, self.grid[:2]), band, heights)
            for values in (weights, maps * weights, maps.square() * weights)
        )
        overall = total.sum() / count.sum()
        near = _blur(count)
        mean = torch.where(near > 0.05, _blur(total) / near.clamp(min=1e-6), overall)
        around = (square - 2 * mean * total + mean**2 * count).clamp(min=0)
        prior = around.sum() / count.sum()
        std = ((_blur(around) + _PRIOR * prior) / (near + _PRIOR)).sqrt()
        std = std.clamp(min=float(std[count > 0].quantile(_FLOOR)))
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-8))
        means, stds = (self._slices(table, maps.shape[1:], heights) for table in (self.mean, self.std))
        standardised = ((maps - means) / stds)[inside]
        self.limit.fill_(_quantile(standardised, quantile))
        self.known.fill_(1.0)

    def standardise(self, volume: torch.Tensor) -> torch.Tensor:
        """(A, B, Z) raw values -> healthy deviations above what is usual there; unchanged before ``learn``."""
        mean, std = (
            functional.interpolate(table[None, None], volume.shape, mode="trilinear", align_corners=False)[0, 0]
            for table in (self.mean, self.std)
        )
        return (volume - mean) / std

    def exceeding(self, standardised: torch.Tensor, inside: torch.Tensor, quantile: float) -> torch.Tensor:
        """Where values are above the healthy limit, or, before ``learn``, above the scan's own quantile. bool."""
        if not inside.any():
            return torch.zeros_like(inside)
        limit = self.limit if bool(self.known) else _quantile(standardised[inside], quantile)
        return (standardised > limit) & inside

    def _banded(self, pooled: torch.Tensor, band: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(self.grid[2], *self.grid[:2], device=pooled.device)
        everywhere = heights.isnan()
        sums.index_add_(0, band[~everywhere], pooled[~everywhere])
        sums += pooled[everywhere].sum(dim=0)
        return sums.movedim(0, 2)

    def _slices(self, table: torch.Tensor, size: torch.Size, heights: torch.Tensor) -> torch.Tensor:
        """The table's values for slices at given heights, (n, A, B)."""
        dense = functional.interpolate(table[None, None], (*size, 256), mode="trilinear", align_corners=False)[0, 0]
        index = (heights.nan_to_num(0.5) * 256).long().clamp(0, 255)
        return dense[..., index].movedim(2, 0)


def _quantile(values: torch.Tensor, quantile: float) -> torch.Tensor:
    # torch.quantile refuses more than 2^24 values.
    index = min(int(quantile * len(values)), len(values) - 1)
    return values.sort().values[index]


def _blur(table: torch.Tensor) -> torch.Tensor:
    """Gaussian sum over a grid (x, y, z); what lies outside counts nothing."""
    radius = round(3 * _SMOOTHING)
    at = torch.arange(-radius, radius + 1, device=table.device, dtype=table.dtype)
    kernel = torch.exp(-0.5 * (at / _SMOOTHING) ** 2)
    kernel = kernel / kernel.sum()
    out = table[None, None]
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(kernel), radius
        out = functional.conv3d(out, kernel.reshape(shape), padding=padding)
    return out[0, 0]
