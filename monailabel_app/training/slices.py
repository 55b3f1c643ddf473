"""The samples that a run draws from: slices of healthy brains, or whole ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed

from .cache import TrainingCache

_MIN_BRAIN_PIXELS = 40
# The axis of a (X, Y, Z) volume that each plane's slices lie across.
_AXES: Mapping[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


class SlicePool:
    """All slices with brain in them, drawn uniformly with replacement.

    index: (n, 2), volume and level of each axial slice. planes: whose slices are drawn, each plane as often as the
    others. Raises TrainingFailed when no slice holds brain, InvalidSettings for an unknown plane and for other
    planes than axial of a cache of single slices.
    """

    def __init__(self, cache: TrainingCache, device: torch.device, planes: Sequence[str] = ("axial",)) -> None:
        if not planes or not set(planes) <= set(_AXES):
            raise InvalidSettings(f"expected planes out of {', '.join(_AXES)}, got {', '.join(planes) or 'none'}")
        if cache.images.shape[3] == 1 and set(planes) != {"axial"}:
            raise InvalidSettings(
                f"expected brains to draw {', '.join(planes)} slices from, got single axial slices; train with a "
                "preset for slices, or on volumes"
            )
        self._images = cache.images
        self._device = device
        self._planes = tuple(planes)
        self._index = {plane: _used(cache.brain_masks, _AXES[plane]) for plane in {*planes, "axial"}}
        self.index = self._index["axial"]
        if not all(len(self._index[plane]) for plane in planes):
            raise TrainingFailed("expected slices with brain in the cache, found none; prepare the scans again")

    def __len__(self) -> int:
        return sum(len(self._index[plane]) for plane in self._planes)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, bool]:
        """(count, 1, A, B) in [0, 1], all of one plane; whether left and right lie along A, so that flips make sense.

        A single plane costs no random number.
        """
        plane = self._planes[0]
        if len(self._planes) > 1:
            plane = self._planes[int(torch.randint(len(self._planes), (1,), generator=generator))]
        rows = torch.randint(len(self._index[plane]), (count,), generator=generator)
        return self._take(plane, rows), plane != "sagittal"

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The axial slices at the given rows of the index: (n, 1, X, Y)."""
        return self._take("axial", rows)

    def held_out(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Up to ``count`` different axial samples, always the same ones for a generator's seed."""
        return self.take(torch.randperm(len(self.index), generator=generator)[:count])

    def _take(self, plane: str, rows: torch.Tensor) -> torch.Tensor:
        volume, level = self._index[plane][rows].T
        slices = self._images.movedim(1 + _AXES[plane], 1)[volume, level]
        return slices[:, None].to(self._device).float() / 255


class VolumePool:
    """All brains of a cache, drawn whole, with replacement. index: (n, 1).

    Raises InvalidSettings for a cache of single slices, TrainingFailed when no scan holds brain.
    """

    def __init__(self, cache: TrainingCache, device: torch.device) -> None:
        if cache.images.shape[3] == 1:
            raise InvalidSettings(
                "expected whole brains, which this method learns from, got single slices; train on volumes, or choose "
                "a method of slices"
            )
        self._images = cache.images
        self._device = device
        self.index = torch.nonzero(cache.brain_masks.flatten(1).any(dim=1))
        if len(self.index) == 0:
            raise TrainingFailed("expected brains in the cache, found none; prepare the scans again")

    def __len__(self) -> int:
        return len(self.index)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, bool]:
        """(count, 1, X, Y, Z) in [0, 1]; left and right lie along X."""
        return self.take(torch.randint(len(self.index), (count,), generator=generator)), True

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The brains at the given rows of the index."""
        return self._images[self.index[rows, 0]][:, None].to(self._device).float() / 255

    def held_out(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Up to ``count`` different brains, always the same ones for a generator's seed."""
        return self.take(torch.randperm(len(self.index), generator=generator)[:count])


def sample_pool(cache: TrainingCache, device: torch.device, method: object, config: object) -> SlicePool | VolumePool:
    """What a method trains on: slices (of ``config.planes``, else axial) or, where it says so, volumes."""
    if getattr(method, "SAMPLES", "slices") == "volumes":
        return VolumePool(cache, device)
    return SlicePool(cache, device, getattr(config, "planes", ("axial",)))


def _used(masks: torch.Tensor, axis: int) -> torch.Tensor:
    other = tuple(1 + a for a in range(3) if a != axis)
    return torch.nonzero(masks.sum(dim=other) >= _MIN_BRAIN_PIXELS)
