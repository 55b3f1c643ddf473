"""Reconstruction by denoising diffusion on axial slices.

Wyatt et al., AnoDDPM (CVPRW 2022): simplex noise, partial diffusion. Behrendt et al. (ISBI 2024, arXiv 2312.04215):
clean-image prediction, L1 loss, one step from an intermediate noise level; several noise draws are averaged here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from monailabel_app.networks.diffusion_unet import Denoiser, DenoiserConfig

from .diffusion import DiffusionConfig, DiffusionEngine
from .draws import Restore, analyse_draws
from .output import MethodOutput, Progress


@dataclass(frozen=True)
class Config:
    """levels: sqrt(alpha-bar) of the test noise. draws: noise fields per level. chain_steps: 1 is one-step.

    shared_noise: one noise field for all slices of a volume (Behrendt et al.) instead of one per slice. planes: whose
    slices are trained on and redrawn; the mean over the planes is the reconstruction.
    """

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(train_levels=(0.1, 0.97)))
    levels: tuple[float, ...] = (0.7,)
    draws: int = 4
    chain_steps: int = 1
    shared_noise: bool = False
    planes: tuple[str, ...] = ("axial",)


# Test levels and draws as chosen for the shipped T1 model; the published 0.70 (Config's default) was worse after the
# short trainings that two processor cores allow.
COMPACT = Config(levels=(0.97, 0.93), draws=3)
# A third of the weights, for slices of one level; strong noise, since what FLAIR shows bright is large.
SMALL = Config(
    denoiser=DenoiserConfig(channels=(32, 56, 80), head_channels=40, norm_groups=8), levels=(0.7, 0.5), draws=5
)
# Learns next to nothing in a minute: for trying out a server or a cluster, not for scans.
TINY = Config(
    denoiser=DenoiserConfig(channels=(16, 32), attention_levels=(False, False), head_channels=16, norm_groups=8),
    diffusion=DiffusionConfig(train_levels=(0.1, 0.97)),
    levels=(0.93,),
    draws=1,
)
# The network of the published code: 128 channels, three residual blocks, attention in the middle block only.
BEHRENDT = Config(
    denoiser=DenoiserConfig(
        channels=(128, 256, 256),
        num_res_blocks=3,
        head_channels=64,
        norm_groups=32,
        resblock_updown=True,
        block_size=1,
    ),
    diffusion=DiffusionConfig(train_levels=(0.0, 1.0)),
    draws=1,
)
PRESETS = {"compact": COMPACT, "small": SMALL, "large": BEHRENDT, "behrendt": BEHRENDT, "tiny": TINY}


def build(config: Config) -> nn.Module:
    """A network with fresh weights."""
    return Denoiser(config.denoiser)


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1]."""
    return DiffusionEngine(config.diffusion).training_loss(model, batch, generator)


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
    """The pseudo-healthy volume of (X, Y, Z) in [0, 1]: mean over levels and draws, and their variance.

    image lives on the model's device. Slices without brain stay zero and cost nothing.
    """
    engine = DiffusionEngine(config.diffusion)

    def restorer(slices: torch.Tensor) -> Restore:
        return lambda level, noise: engine.restore(model, slices, level, noise, chain_steps=config.chain_steps)

    return analyse_draws(restorer, engine, config, image, generator, batch_size=batch_size, progress=progress)


def light(config: Config) -> Config:
    """One noise draw, for figures that follow a training."""
    return replace(config, draws=1)
