"""Diffusion on axial slices, one box at a time: each is noised and redrawn in its clean surroundings.

Behrendt et al., Patched diffusion models for unsupervised anomaly detection in brain MRI (MIDL 2023). The network sees
everything around the box as it is, so what it puts inside agrees with the patient's anatomy, even from strong noise.
Training noises one box per slice, chosen from a fixed grid, and counts the loss there only. At test every box is
noised in turn with the part of one noise field that lies in it, and the redrawn boxes are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil

import torch
from torch import nn

from monailabel_app.errors import InvalidSettings
from monailabel_app.networks.diffusion_unet import Denoiser, DenoiserConfig

from .diffusion import DiffusionConfig, DiffusionEngine
from .draws import Restore, analyse_draws
from .output import MethodOutput, Progress

_PASSES = 16  # whose noise is drawn together


@dataclass(frozen=True)
class Config:
    """boxes: how many cover a slice along each axis. overlap: share of a box that its neighbour covers too.

    levels: sqrt(alpha-bar) of the test noise. draws: noise fields per level. shared_noise, planes: as for ``ddpm``.
    """

    denoiser: DenoiserConfig = field(
        default_factory=lambda: DenoiserConfig(channels=(32, 56, 80), head_channels=40, norm_groups=8)
    )
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(train_levels=(0.1, 0.97)))
    boxes: tuple[int, int] = (2, 2)
    overlap: float = 0.0
    levels: tuple[float, ...] = (0.7, 0.5)
    draws: int = 5
    shared_noise: bool = False
    planes: tuple[str, ...] = ("axial",)

    def __post_init__(self) -> None:
        if min(self.boxes) < 1 or not 0 <= self.overlap < 1:
            raise InvalidSettings(
                f"expected at least one box along each axis and an overlap in [0, 1), got boxes {self.boxes} and "
                f"overlap {self.overlap}"
            )


COMPACT = Config()
TINY = Config(
    denoiser=DenoiserConfig(channels=(16, 32), attention_levels=(False, False), head_channels=16, norm_groups=8),
    levels=(0.7,),
)
# The published network and the four boxes of 48 x 48 in a slice of 96 x 96.
LARGE = Config(
    denoiser=DenoiserConfig(
        channels=(128, 256, 256), num_res_blocks=3, head_channels=64, norm_groups=32, resblock_updown=True, block_size=1
    ),
    diffusion=DiffusionConfig(train_levels=(0.0, 1.0)),
    levels=(0.7,),
    draws=10,
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


def build(config: Config) -> nn.Module:
    """A network with fresh weights."""
    return Denoiser(config.denoiser)


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1]. One box of each is noised, and the loss is that inside it."""
    masks = box_masks(tuple(batch.shape[-2:]), config.boxes, config.overlap)
    chosen = torch.randint(len(masks), (len(batch),), generator=generator)
    within = masks[chosen][:, None].to(batch.device)
    return DiffusionEngine(config.diffusion).training_loss(model, batch, generator, within=within)


@torch.inference_mode()
def analyse(
    model: nn.Module,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """The pseudo-healthy volume of (X, Y, Z) in [0, 1], its variance over draws, and the draws.

    image lives on the model's device. Slices without brain stay zero and cost nothing; the others cost one pass per
    box, and batch_size counts passes.
    """
    engine = DiffusionEngine(config.diffusion)
    count = len(box_masks(tuple(image.shape[:2]), config.boxes, config.overlap))

    def restorer(slices: torch.Tensor) -> Restore:
        masks = box_masks(tuple(slices.shape[-2:]), config.boxes, config.overlap).to(slices.device)
        return lambda level, noise: redraw_boxes(model, engine, slices, masks, level, noise)

    return analyse_draws(
        restorer,
        engine,
        config,
        image,
        generator,
        batch_size=max(1, batch_size // count),
        group=max(1, _PASSES // count),
        progress=progress,
    )


def redraw_boxes(
    model: nn.Module,
    engine: DiffusionEngine,
    slices: torch.Tensor,
    masks: torch.Tensor,
    level: float,
    noise: torch.Tensor,
) -> torch.Tensor:
    """One-step estimates of every box in its clean surroundings, put together; where boxes overlap, their mean.

    slices: (n, 1, X, Y) in [0, 1]. masks: (k, X, Y) bool, the boxes. noise: (n, 1, X, Y), the field all boxes share.
    """
    clean = slices * 2 - 1
    timesteps = torch.full((len(slices),), engine.timestep(level), device=slices.device)
    noisy = engine.add_noise(clean, timesteps, noise)
    within = masks[:, None, None]
    contexts = torch.where(within, noisy, clean)
    made = engine.clean_estimate(model, contexts.flatten(0, 1), timesteps.repeat(len(masks)))
    made = made.reshape(contexts.shape)
    stitched = (made * within).sum(dim=0) / masks.sum(dim=0)
    return (stitched + 1) / 2


@lru_cache(maxsize=32)
def box_masks(size: tuple[int, int], boxes: tuple[int, int], overlap: float) -> torch.Tensor:
    """(k, X, Y) bool: boxes of one size, evenly spread, that cover the slice; without overlap each pixel once."""
    masks = []
    for first_x, last_x in _spans(size[0], boxes[0], overlap):
        for first_y, last_y in _spans(size[1], boxes[1], overlap):
            mask = torch.zeros(size, dtype=torch.bool)
            mask[first_x:last_x, first_y:last_y] = True
            masks.append(mask)
    return torch.stack(masks)


def _spans(length: int, count: int, overlap: float) -> Sequence[tuple[int, int]]:
    if count > length:
        raise InvalidSettings(f"expected at most one box per pixel, got {count} along {length} pixels")
    if overlap == 0:
        edges = [round(length * index / count) for index in range(count + 1)]
        return list(pairwise(edges))
    side = ceil(length / count)
    steps = 1 + ceil((length - side) / max(1, side * (1 - overlap)) - 1e-9)
    starts = [round((length - side) * index / max(1, steps - 1)) for index in range(steps)]
    return [(start, start + side) for start in starts]


def light(config: Config) -> Config:
    """One noise draw, for figures that follow a training."""
    return replace(config, draws=1)
