"""Mean and deviation of a score at every voxel of healthy brains in template space."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from monailabel_app.errors import InvalidSettings

_MEAN_SIGMA, _VARIANCE_SIGMA = 1.0, 2.0  # voxels
PRIOR_SCANS = 4.0
_FLOOR_PERCENTILE = 10.0


@dataclass(frozen=True)
class VoxelStatistics:
    """mean, std: (X, Y, Z) float32; std is positive everywhere."""

    mean: np.ndarray
    std: np.ndarray

    def standardize(self, score_map: np.ndarray, brain_mask: np.ndarray) -> np.ndarray:
        """Healthy standard deviations above the healthy mean: (X, Y, Z) float32, 0 outside the brain."""
        return np.where(brain_mask, (score_map - self.mean) / self.std, 0.0).astype(np.float32)

    def packed(self) -> dict[str, torch.Tensor]:
        """``mean`` and ``std`` in half precision where they differ from what most of the grid, the background, has.

        A third of the dense size; ``shape``, ``inside`` (packed bits), ``background`` (mean and std there) say where.
        """
        background = [_commonest(self.mean), _commonest(self.std)]
        inside = (self.mean != background[0]) | (self.std != background[1])
        return {
            "mean": torch.from_numpy(self.mean[inside]).half(),
            "std": torch.from_numpy(self.std[inside]).half(),
            "inside": torch.from_numpy(np.packbits(inside)),
            "background": torch.tensor(background, dtype=torch.float16),
            "shape": torch.tensor(self.mean.shape, dtype=torch.int32),
        }

    @classmethod
    def unpacked(cls, tensors: Mapping[str, torch.Tensor]) -> VoxelStatistics:
        """The inverse of ``packed``; dense maps, as earlier versions stored them, are taken as they are.

        Raises KeyError or ValueError for incomplete tensors.
        """
        if "shape" not in tensors:
            return cls(tensors["mean"].float().numpy(), tensors["std"].float().numpy())
        shape = tuple(int(n) for n in tensors["shape"])
        packed = tensors["inside"].numpy()
        # Before so much is allocated: a shape of a few bytes could ask for any amount.
        if len(shape) != 3 or min(shape) < 1 or not 0 <= 8 * packed.size - math.prod(shape) < 8:
            raise ValueError(f"expected as many voxels as of a grid of {shape}")
        inside = np.unpackbits(packed, count=math.prod(shape)).reshape(shape).astype(bool)
        maps = []
        for name, background in zip(("mean", "std"), tensors["background"].float().tolist(), strict=True):
            dense = np.full(shape, background, np.float32)
            dense[inside] = tensors[name].float().numpy()
            maps.append(dense)
        return cls(*maps)


class HealthyMoments:
    """Running sums over healthy maps, from which the statistics with or without one scan follow.

    maps, brain_masks: (X, Y, Z) each; they may be read from disk when they are indexed, one is in memory at a time.

    prior_scans: so many scans with the brain's average variance are added at every voxel. Many of them leave a
    deviation that is nearly the same everywhere, which suits a map that healthy anatomy hardly shows in.
    """

    def __init__(
        self, maps: Sequence[np.ndarray], brain_masks: Sequence[np.ndarray], *, prior_scans: float = PRIOR_SCANS
    ) -> None:
        if len(maps) < 3:
            raise InvalidSettings(f"expected at least 3 healthy scans to calibrate on, got {len(maps)}; add scans")
        self._prior = prior_scans
        self._maps, self._masks = maps, brain_masks
        shape = np.shape(maps[0])
        self._count, self._sum, self._square = (np.zeros(shape) for _ in range(3))
        for values, mask in zip(maps, brain_masks, strict=True):
            inside = np.where(mask, values, 0).astype(np.float64)
            self._count += np.asarray(mask, dtype=bool)
            self._sum += inside
            self._square += inside**2

    def statistics(self, without: int | Collection[int] | None = None) -> VoxelStatistics:
        """Statistics over all scans, or over all but those of index ``without``.

        With few scans the voxel-wise moments are noisy, so neighbours are pooled (mean: 1 voxel, variance: 2
        voxels), the variance is drawn towards the brain's as if by ``prior_scans`` more scans, and the deviation has a
        floor at its own 10th percentile.
        """
        count, total, square = self._count, self._sum, self._square
        for index in (without,) if isinstance(without, (int, np.integer)) else without or ():
            mask = np.asarray(self._masks[index], dtype=bool)
            values = np.where(mask, self._maps[index], 0)
            count, total, square = count - mask, total - values, square - values.astype(np.float64) ** 2
        brain = count > 0
        weight = _blur(count, _MEAN_SIGMA)
        mean = _blur(total, _MEAN_SIGMA) / np.maximum(weight, 1e-6)
        overall = total.sum() / count.sum()
        mean = np.where(weight > 0.05, mean, overall)
        # Sum of squares around the pooled mean, so that the pooling of the mean counts as spread.
        around = np.maximum(square - 2 * mean * total + mean**2 * count, 0)
        prior = around.sum() / count.sum()
        spread = _blur(around, _VARIANCE_SIGMA) + self._prior * prior
        std = np.sqrt(spread / (_blur(count, _VARIANCE_SIGMA) + self._prior))
        std = np.maximum(std, max(float(np.percentile(std[brain], _FLOOR_PERCENTILE)), 1e-6))
        return VoxelStatistics(mean.astype(np.float32), std.astype(np.float32))


def _commonest(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    # Along an axis of one voxel there are no neighbours to pool, and zeros beyond it would only weaken the counts.
    widths = [sigma if size > 1 else 0.0 for size in values.shape]
    return ndimage.gaussian_filter(values, widths, mode="constant", truncate=3.0)
