"""Synthetic lesions in healthy slices: what a restoring network is trained to undo.

In the line of Naval Marimont et al., DISYRE (ISBI 2024): random smooth shapes, filled with foreign tissue or with
shifted intensities, blended in by a severity. Wider here: relative and absolute shifts of either sign, flat, rough and
quantised fillings, lesions that keep to one tissue, several per slice, sizes from one pixel to a territory, and the
slice's intensity scale moving as normalisation would move it.

The shapes are level sets of a paraboloid with noise, in the plane. Lesions implanted for evaluation are made otherwise
(``preprocessing.lesion_implant`` and shapes drawn in patients), so that no figure rewards knowing the generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from monailabel_app.errors import InvalidSettings

FILLINGS = ("relative", "absolute", "flat", "foreign", "rough", "quantised")
_NOISE_CELLS = 24  # side of the table of random numbers that a lesion's noise is read from
_LEVELS = 6  # of a quantised filling


@dataclass(frozen=True)
class LesionConfig:
    """Lengths in pixels, intensities in the slice's units (healthy tissue reaches 0.8).

    lesions: at most so many per slice. healthy_share: slices that get none. radius: range, log-uniform. elongation:
    largest ratio of the axes' square roots. roughness: of the outline, 0 gives ellipses. edge: range of the border's
    width. contrast: range of the change at full severity, relative or absolute, log-uniform. darker_share: lesions
    darker than their surroundings. fillings: weights in the order of FILLINGS. tissue_share: lesions that only change
    pixels about as bright as their centre, tissue_width: how nearly. fixed_quantile: of the brain, kept where it
    was by scaling the slice, as normalisation would after a large lesion; 0 scales nothing. severity: range, uniform.
    """

    lesions: int = 5
    healthy_share: float = 0.1
    radius: tuple[float, float] = (1.5, 16.0)
    elongation: float = 1.6
    roughness: float = 0.8
    edge: tuple[float, float] = (0.3, 2.0)
    contrast: tuple[float, float] = (0.1, 0.8)
    darker_share: float = 0.5
    fillings: tuple[float, ...] = (3.0, 2.0, 1.0, 2.0, 1.0, 0.5)
    tissue_share: float = 0.3
    tissue_width: float = 0.12
    fixed_quantile: float = 0.0
    severity: tuple[float, float] = (0.1, 1.0)


@dataclass(frozen=True)
class Lesioned:
    """Slices (n, 1, X, Y) in [0, 1] with their lesions, the same slices without, and what was done.

    share: (n, 1, X, Y) in [0, 1], how much of a pixel is lesion at full severity. severity: (n,) in [0, 1].
    """

    images: torch.Tensor
    clean: torch.Tensor
    share: torch.Tensor
    severity: torch.Tensor


def implant_synthetic(slices: torch.Tensor, config: LesionConfig, generator: torch.Generator) -> Lesioned:
    """Put random lesions into healthy slices (n, 1, X, Y) in [0, 1], zero outside the brain.

    Drawn on the CPU from ``generator``: the same on every device. Nothing outside the brain changes. Raises
    InvalidSettings for a configuration without sizes, fillings or lesions.
    """
    _check(config)
    n = len(slices)
    brain = slices > 0
    severity = _uniform(n, *config.severity, generator)
    count = 1 + torch.randint(config.lesions, (n,), generator=generator)
    count = torch.where(torch.rand(n, generator=generator) < config.healthy_share, 0, count)
    image, share = slices, torch.zeros_like(slices)
    strength = severity.to(slices)[:, None, None, None]
    for number in range(int(count.max())):
        alpha = _shape(image, brain, config, generator)
        alpha = torch.where((count > number).to(slices.device)[:, None, None, None], alpha, 0.0)
        filling = _filling(image, slices, config, generator)
        image = image + strength * alpha * (filling - image)
        share = torch.maximum(share, alpha)
    clean = slices
    if config.fixed_quantile:
        scale = _level(slices, brain, config.fixed_quantile) / _level(image, brain, config.fixed_quantile)
        image, clean = image * scale, clean * scale
    return Lesioned(torch.where(brain, image.clamp(0, 1), 0.0), clean.clamp(0, 1), share, severity.to(slices.device))


def _shape(image: torch.Tensor, brain: torch.Tensor, config: LesionConfig, generator: torch.Generator) -> torch.Tensor:
    """One lesion per slice as shares in [0, 1]; centres are brain pixels."""
    n, _, size_x, size_y = image.shape
    centre = _pixels_of(brain, generator)
    radius = torch.exp(_uniform(n, *(math.log(r) for r in config.radius), generator))
    stretch = torch.exp(_uniform(n, -1, 1, generator) * math.log(config.elongation))
    angle = _uniform(n, 0, math.pi, generator)
    roughness = _uniform(n, 0, config.roughness, generator)
    edge = _uniform(n, *config.edge, generator)
    edge = torch.minimum(edge, radius / 2)  # a border wider than the lesion would leave nothing of it
    table = torch.randn(n, 1, _NOISE_CELLS, _NOISE_CELLS, generator=generator)
    cell = radius * torch.exp(_uniform(n, math.log(0.3), math.log(1.0), generator))

    def on(values: torch.Tensor) -> torch.Tensor:
        return values.to(image)[:, None, None]

    x = torch.arange(size_x).to(image)[None, :, None] - on(centre[:, 0])
    y = torch.arange(size_y).to(image)[None, None, :] - on(centre[:, 1])
    cos, sin = on(torch.cos(angle)), on(torch.sin(angle))
    u, v = (cos * x + sin * y) / on(radius * stretch), (cos * y - sin * x) / on(radius / stretch)
    places = torch.stack((y.expand(n, size_x, size_y), x.expand(n, size_x, size_y)), dim=-1)
    places = places / on(cell)[..., None] * (2 / _NOISE_CELLS)
    noise = functional.grid_sample(table.to(image), places, padding_mode="reflection", align_corners=False)[:, 0]
    level = 1 - u**2 - v**2 + on(roughness) * noise
    alpha = torch.sigmoid(level * on(radius / edge))[:, None]
    here = image[torch.arange(n), 0, centre[:, 0].long(), centre[:, 1].long()][:, None, None, None]
    selective = (torch.rand(n, generator=generator) < config.tissue_share).to(image.device)[:, None, None, None]
    kept = torch.exp(-0.5 * ((image - here) / config.tissue_width) ** 2)
    return torch.where(brain, torch.where(selective, alpha * kept, alpha), 0.0)


def _filling(
    image: torch.Tensor, slices: torch.Tensor, config: LesionConfig, generator: torch.Generator
) -> torch.Tensor:
    """What the lesions are made of, as whole slices."""
    n, _, size_x, size_y = image.shape
    weights = torch.tensor(config.fillings, dtype=torch.float32)
    kind = torch.multinomial(weights, n, replacement=True, generator=generator)
    size = torch.exp(_uniform(n, *(math.log(c) for c in config.contrast), generator))
    sign = torch.where(torch.rand(n, generator=generator) < config.darker_share, -1.0, 1.0)
    # Tissue cannot get darker than nothing: relative losses are those of gains of the same ratio.
    gain = torch.exp(sign * torch.log1p(size))
    flat = torch.rand(n, generator=generator)
    texture = _uniform(n, 0, 0.25, generator)
    coarse = torch.randn(n, 1, size_x // 4, size_y // 4, generator=generator)
    fine = torch.randn(n, 1, size_x, size_y, generator=generator)
    rolls = torch.randint(-12, 13, (2,), generator=generator).tolist()
    partner = int(torch.randint(1, max(n, 2), (1,), generator=generator))
    mirrored = bool(torch.rand((), generator=generator) < 0.5)

    def on(values: torch.Tensor) -> torch.Tensor:
        return values.to(image)[:, None, None, None]

    noise = functional.interpolate(coarse, (size_x, size_y), mode="bilinear", align_corners=True).to(image)
    foreign = slices.roll(partner, dims=0).roll(rolls, dims=(2, 3))
    foreign = foreign.flip(2) if mirrored else foreign
    rough = on(texture) * (noise + 0.5 * fine.to(image))
    flat_with_noise = on(flat) + 0.3 * rough
    made = torch.stack(
        (
            image * on(gain),
            image + 0.6 * on(sign * size),
            flat_with_noise,
            foreign,
            image * on(gain) * (1 + rough),
            torch.round(image * on(gain) * _LEVELS) / _LEVELS,
        )
    )
    return made[kind.to(image.device), torch.arange(n, device=image.device)].clamp(0, 1.2)


def _pixels_of(brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random brain pixel (n, 2) of every slice; the middle where a slice has none."""
    size_x, size_y = brain.shape[2:]
    weight = brain.flatten(1).float().cpu()
    weight[weight.sum(dim=1) == 0, (size_x // 2) * size_y + size_y // 2] = 1
    chosen = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return torch.stack((chosen // size_y, chosen % size_y), dim=1).float()


def _level(slices: torch.Tensor, brain: torch.Tensor, quantile: float) -> torch.Tensor:
    """The level that a share of 1 - quantile of a slice's brain pixels exceeds, (n, 1, 1, 1), above 0."""
    ranked = slices.flatten(1).sort(dim=1, descending=True).values
    place = (brain.flatten(1).sum(dim=1) * (1 - quantile)).long().clamp(max=ranked.shape[1] - 1)
    return ranked.gather(1, place[:, None])[:, :, None, None].clamp(min=1e-3)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _check(config: LesionConfig) -> None:
    ranges = {"radius": config.radius, "edge": config.edge, "contrast": config.contrast, "severity": config.severity}
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise InvalidSettings(f"expected {name} as a rising range above 0, got {low}..{high}")
    weights = config.fillings
    if len(weights) != len(FILLINGS) or min(weights) < 0 or not sum(weights) > 0:
        raise InvalidSettings(f"expected weights for {', '.join(FILLINGS)}, got {weights}")
    if config.lesions < 1 or config.severity[1] > 1 or config.elongation < 1 or not 0 <= config.fixed_quantile < 1:
        raise InvalidSettings(
            "expected at least one lesion, severities up to 1, an elongation of at least 1 and a quantile below 1, got "
            f"{config.lesions}, {config.severity}, {config.elongation} and {config.fixed_quantile}"
        )
