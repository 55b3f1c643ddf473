"""Denoising autoencoder: a U-Net learns to take coarse noise off healthy slices, and takes lesions off with it.

Kascenas, Pugeault, O'Neil (MIDL 2022): Gaussian noise of deviation 0.2 drawn on a 16 x 16 lattice, enlarged to the
slice and rolled at random, added to the foreground; squared error in the foreground; at test the slice goes in without
noise and the anomaly map is the residual. Changed: one sequence instead of four as channels, slices at 2 mm with the
lattice's spacing kept in millimetres (about 12), a lean U-Net with group normalisation that predicts the change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.networks.restoration_unet import RestorationConfig, RestorationUnet

from .output import MethodOutput, Progress, fast_autocast, over_slices


@dataclass(frozen=True)
class Config:
    """noise: deviation of the coarse noise, for a slice in [0, 1]. cell: pixels between the noise's nodes.

    clean_share: slices of a batch that get no noise (none in the paper). planes: those trained on.
    """

    network: RestorationConfig = field(default_factory=RestorationConfig)
    noise: float = 0.2
    cell: int = 6
    clean_share: float = 0.0
    planes: tuple[str, ...] = ("axial",)


COMPACT = Config(network=RestorationConfig(channels=(32, 64, 128)))
# The paper's depth and width: four levels from 64 channels, on pixels.
LARGE = Config(network=RestorationConfig(channels=(64, 128, 256, 512), blocks=1, norm_groups=16, block_size=1))
TINY = Config(network=RestorationConfig(channels=(16, 32)))
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


def build(config: Config) -> nn.Module:
    """A network with fresh weights, which changes nothing yet."""
    return RestorationUnet(config.network)


def coarse_noise(slices: torch.Tensor, config: Config, generator: torch.Generator) -> torch.Tensor:
    """The noise of a batch (n, 1, X, Y), zero outside the brain; drawn on the CPU, the same on every device."""
    n, _, size_x, size_y = slices.shape
    nodes = config.noise * torch.randn(
        n, 1, max(2, round(size_x / config.cell)), max(2, round(size_y / config.cell)), generator=generator
    )
    fine = functional.interpolate(nodes, (size_x, size_y), mode="bilinear", align_corners=True)
    rolls = [int(torch.randint(size, (1,), generator=generator)) for size in (size_x, size_y)]
    noisy = (torch.rand(n, generator=generator) >= config.clean_share)[:, None, None, None]
    return torch.where(slices > 0, (fine * noisy).roll(rolls, dims=(2, 3)).to(slices), 0.0)


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1], zero outside the brain. The mean squared error in the brain."""
    noisy = batch + coarse_noise(batch, config, generator)
    restored = noisy + model(noisy, _no_time(batch)).float()
    brain = batch > 0
    return ((restored - batch).square() * brain).sum() / brain.sum().clamp(min=1)


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
    """The restored volume of (X, Y, Z) in [0, 1]; one pass per axial slice, nothing is drawn."""

    def restore(slices: torch.Tensor) -> list[torch.Tensor]:
        with fast_autocast(slices.device):
            change = model(slices, _no_time(slices))
        return [torch.where(slices > 0, (slices + change.float()).clamp(0, 1), 0.0)]

    (restored,) = over_slices(image, restore, batch_size=batch_size, progress=progress)
    return MethodOutput(torch.where(brain_mask, restored, 0.0))


def _no_time(slices: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(slices), device=slices.device)
