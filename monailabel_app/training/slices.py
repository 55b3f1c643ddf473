"""The slices that a run draws from."""

from __future__ import annotations

import torch

from monailabel_app.errors import TrainingFailed

from .cache import TrainingCache

_MIN_BRAIN_PIXELS = 40


class SlicePool:
    """All slices with brain in them, drawn uniformly with replacement.

    index: (n, 2), volume and level of each. Raises TrainingFailed when no slice holds brain.
    """

    def __init__(self, cache: TrainingCache, device: torch.device) -> None:
        self._images = cache.images
        self._device = device
        self.index = torch.nonzero(cache.brain_masks.sum(dim=(1, 2)) >= _MIN_BRAIN_PIXELS)
        if len(self.index) == 0:
            raise TrainingFailed("expected slices with brain in the cache, found none; prepare the scans again")

    def __len__(self) -> int:
        return len(self.index)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count, 1, X, Y) in [0, 1]."""
        return self.take(torch.randint(len(self.index), (count,), generator=generator))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The slices at the given rows of the index."""
        volume, level = self.index[rows].T
        return self._images[volume, :, :, level][:, None].to(self._device).float() / 255
