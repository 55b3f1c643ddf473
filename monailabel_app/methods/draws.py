"""Several reconstructions of one brain from several noise fields: how they are made, and what their spread tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Protocol

import torch

from .diffusion import DiffusionEngine
from .output import AXIS_OF_PLANE, MethodOutput, Progress, fast_autocast, over_slices

# (sqrt(alpha-bar), noise (n, 1, A, B)) -> clean estimate (n, 1, A, B) in [0, 1] of the slices it was made for.
Restore = Callable[[float, torch.Tensor], torch.Tensor]
# What the published score adds to the covariance of the draws, for intensities in [0, 1].
RIDGE = 0.01


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
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """Redraw every slice of (X, Y, Z) in [0, 1] from each noise level and draw, and sum the estimates up.

    restorer: called once for each batch of slices (n, 1, A, B) in [0, 1], returns what restores them.
    reconstruction: their mean; variance: over them, where there are several; maps: ``mahalanobis``.
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
            found = []
            with fast_autocast(slices.device):
                restore = restorer(slices)
                for index, (level, _) in enumerate(passes):
                    if fields is None:
                        noise = engine.draw_noise(slices.shape, generator, slices.device)
                    else:
                        noise = fields[index].expand(slices.shape)
                    found.append(restore(level, noise))
            return found

        made += over_slices(
            image,
            estimates,
            outputs=len(passes),
            plane=plane,
            batch_size=batch_size,
            progress=_part(progress, number, len(sweep.planes)),
        )
    mean = mean_of(made)
    return MethodOutput(
        mean,
        maps={"mahalanobis": mahalanobis_map(image, made, brain_mask)},
        variance=variance_of(made, mean) if len(made) > 1 else None,
    )


def mean_of(draws: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of reconstructions (X, Y, Z)."""
    total = torch.zeros_like(draws[0])
    for draw in draws:
        total += draw
    return total / len(draws)


def variance_of(draws: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """The variance over reconstructions (X, Y, Z), about their mean, as a mean over all of them."""
    return mean_of([(draw - mean).square() for draw in draws])


def mahalanobis_map(
    image: torch.Tensor, draws: Sequence[torch.Tensor], brain_mask: torch.Tensor, *, ridge: float = RIDGE
) -> torch.Tensor:
    """How far a slice lies from its reconstructions, counted in what they do not agree on themselves.

    Behrendt et al., MICCAI 2024, per axial slice over its brain pixels, with the sign of image - mean draw: darker and
    brighter tissue are told apart after calibration, as for ``signed``. The published scaling to the range of each
    volume is left out, since the healthy calibration gives every scan the same scale, and so is the product with
    1 - SSIM. It takes about ten draws to be what was published, and five to be worth its name.

    image, draws, brain_mask: (X, Y, Z). Returns (X, Y, Z) float32, 0 outside the brain.
    """
    result = torch.zeros_like(image, dtype=torch.float32)
    for level in torch.nonzero(brain_mask.flatten(0, 1).any(dim=0)).flatten().tolist():
        inside = brain_mask[:, :, level]
        columns = torch.stack([draw[:, :, level][inside] for draw in draws], dim=1).double()
        mean = columns.mean(dim=1)
        difference = image[:, :, level][inside].double() - mean
        distance = mahalanobis(difference, columns - mean[:, None], ridge)
        result[:, :, level][inside] = (distance * difference.sign()).float()
    return result


def mahalanobis(difference: torch.Tensor, deviations: torch.Tensor, ridge: float) -> torch.Tensor:
    """Every pixel's share sqrt(max(0, d_i (S^-1 d)_i)) in the Mahalanobis distance: (p,), not below 0.

    difference: d, (p,). deviations: C, (p, N), N draws about their mean; S = C C^T / (N - 1) + ridge I has rank N - 1
    beside the ridge, so that Woodbury's identity needs an N x N system only:
    S^-1 d = (d - C ((N - 1) ridge I + C^T C)^-1 C^T d) / ridge. A single draw gives |d| / sqrt(ridge).
    """
    count = deviations.shape[1]
    core = deviations.T @ deviations + max(1, count - 1) * ridge * torch.eye(count).to(deviations)
    weighted = (difference - deviations @ torch.linalg.solve(core, deviations.T @ difference)) / ridge
    return (difference * weighted).clamp(min=0).sqrt()


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda share: progress((number + share) / count)
