"""Diffusion on axial slices, guided by what an encoder tells of the slice as it is.

Behrendt et al., Guided reconstruction with conditioned diffusion models (arXiv 2312.04215). Noise strong enough to
hide a lesion also hides the patient's anatomy and the scanner's contrast. A feature vector of the clean slice, too
short to hold a lesion, tells them to the denoiser, by modulating each of its residual blocks.

The encoder is a small residual network with group normalisation, trained from scratch with the denoiser; the published
one is a ResNet-50, optionally after masked pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from monailabel_app.networks.conditioned_unet import ConditionedDenoiser
from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.slice_encoder import EncoderConfig

from .diffusion import DiffusionConfig, DiffusionEngine
from .draws import Restore, analyse_draws
from .output import MethodOutput, Progress


@dataclass(frozen=True)
class Config:
    """denoiser, encoder: the two networks. levels: sqrt(alpha-bar) of the test noise. draws: noise fields per level.

    chain_steps: 1 is one-step. shared_noise, planes: as for ``ddpm``.
    """

    denoiser: DenoiserConfig = field(
        default_factory=lambda: DenoiserConfig(channels=(32, 48, 80), head_channels=40, norm_groups=8)
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(train_levels=(0.1, 0.97)))
    levels: tuple[float, ...] = (0.7, 0.5)
    draws: int = 5
    chain_steps: int = 1
    shared_noise: bool = False
    planes: tuple[str, ...] = ("axial",)


COMPACT = Config()
TINY = Config(
    denoiser=DenoiserConfig(channels=(16, 32), attention_levels=(False, False), head_channels=16, norm_groups=8),
    encoder=EncoderConfig(channels=(8, 16), blocks=(1, 1), features=16),
    levels=(0.93,),
)
# The denoiser of the published code (128 channels, attention in the middle only); the encoder's depth is ResNet-34's.
LARGE = Config(
    denoiser=DenoiserConfig(
        channels=(128, 256, 256), num_res_blocks=3, head_channels=64, norm_groups=32, resblock_updown=True, block_size=1
    ),
    encoder=EncoderConfig(
        channels=(64, 128, 256, 512), blocks=(3, 4, 6, 3), features=128, norm_groups=32, block_size=1
    ),
    diffusion=DiffusionConfig(train_levels=(0.0, 1.0)),
    levels=(0.7,),
    draws=10,
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


def build(config: Config) -> ConditionedDenoiser:
    """Encoder and denoiser with fresh weights."""
    return ConditionedDenoiser(config.denoiser, config.encoder)


def training_loss(
    model: ConditionedDenoiser, config: Config, batch: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1]; encoder and denoiser learn from the same loss."""
    return DiffusionEngine(config.diffusion).training_loss(partial(model, clean=batch), batch, generator)


@torch.inference_mode()
def analyse(
    model: ConditionedDenoiser,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """The pseudo-healthy volume of (X, Y, Z) in [0, 1], its variance over draws, and the draws.

    image lives on the model's device. Slices without brain stay zero and cost nothing.
    """
    engine = DiffusionEngine(config.diffusion)

    def restorer(slices: torch.Tensor) -> Restore:
        condition = model.encode(slices)
        network = partial(model, condition=condition)
        return lambda level, noise: engine.restore(network, slices, level, noise, chain_steps=config.chain_steps)

    return analyse_draws(restorer, engine, config, image, generator, batch_size=batch_size, progress=progress)


def light(config: Config) -> Config:
    """One noise draw, for figures that follow a training."""
    return replace(config, draws=1)
