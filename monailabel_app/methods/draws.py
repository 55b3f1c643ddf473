"""Several reconstructions of one brain from several noise fields: how they are made and summed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Protocol

import torch

from .diffusion import DiffusionEngine
from .output import AXIS_OF_PLANE, MethodOutput, Progress, batches, fast_autocast, over_slices

# (sqrt(alpha-bar), noise (n, 1, A, B)) -> clean estimate (n, 1, A, B) in [0, 1] of the slices it was made for.
Restore = Callable[[float, torch.Tensor], torch.Tensor]


class Sweep(Protocol):
    """levels: sqrt(alpha-bar) of the test noise. draws: noise fields per level. planes: those whose slices are redrawn.

    shared_noise: one field for all slices of a plane (Behrendt et al.) instead of one per slice.
    """

    levels: tuple[float, ...]
    draws: int
    shared_noise: bool
    planes: tuple[str, ...]


def analyse_draws(
    restorer: Callable[[torch.Tensor], Restore],
    engine: DiffusionEngine,
    sweep: Sweep,
    image: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    group: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """Redraw every slice of (X, Y, Z) in [0, 1] from each noise level and draw, and sum the estimates up.

    restorer: called once for each batch of slices (n, 1, A, B) in [0, 1], returns what restores them. group: slices
    whose noise is drawn together; it decides which noise a slice gets, and batch_size does not.
    reconstruction: their mean; variance: over them, where there are several; draws: all of them.
    Slices without brain stay zero and cost nothing.
    """
    passes = list(product(sweep.levels, range(sweep.draws)))
    made: list[torch.Tensor] = []
    for number, plane in enumerate(sweep.planes):
        size = [length for axis, length in enumerate(image.shape) if axis != AXIS_OF_PLANE[plane]]
        fields = None
        if sweep.shared_noise:
            fields = engine.draw_noise((len(passes), 1, *size), generator, image.device)

        def estimates(slices: torch.Tensor, fields: torch.Tensor | None = fields) -> list[torch.Tensor]:
            found: list[list[torch.Tensor]] = [[] for _ in passes]
            with fast_autocast(slices.device):
                if fields is None:
                    noises = [engine.draw_noise(slices.shape, generator, slices.device) for _ in passes]
                else:
                    noises = [field.expand(slices.shape) for field in fields]
                for part in batches(len(slices), batch_size):
                    restore = restorer(slices[part])
                    for made_of, noise, (level, _) in zip(found, noises, passes, strict=True):
                        made_of.append(restore(level, noise[part]))
            return [torch.cat(parts) for parts in found]

        made += over_slices(
            image,
            estimates,
            outputs=len(passes),
            plane=plane,
            batch_size=group,
            progress=_part(progress, number, len(sweep.planes)),
        )
    mean = mean_of(made)
    return MethodOutput(mean, variance=variance_of(made, mean) if len(made) > 1 else None, draws=tuple(made))


def mean_of(draws: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of reconstructions (X, Y, Z)."""
    total = torch.zeros_like(draws[0])
    for draw in draws:
        total += draw
    return total / len(draws)


def variance_of(draws: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """The variance over reconstructions (X, Y, Z), about their mean, as a mean over all of them."""
    return mean_of([(draw - mean).square() for draw in draws])


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda share: progress((number + share) / count)
