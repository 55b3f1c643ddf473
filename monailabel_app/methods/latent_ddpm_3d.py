"""Whole brains as latents of a 3-D VQ-VAE, reconstructed by diffusion from many noise levels.

Graham et al., "Unsupervised 3D out-of-distribution detection with latent diffusion models" (MICCAI 2023): noise the
latents to many levels, denoise each by PLMS, and compare the decoded brain with the scan by mean squared error and by
a perceptual distance. Both are reported per level; z-scored among healthy scans and averaged they tell how unlike its
training data a scan is as a whole. Here the perceptual distance is that of the autoencoder's own encoder, so that no
weights are downloaded, and the latents are small enough for a processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn
from torch.nn import functional

from monailabel_app.networks.vq_vae_3d import VqVae3d, VqVaeConfig, perceptual_maps

from .output import MethodOutput, Progress, fast_autocast
from .plms import ChainSchedule, plms_chains

SAMPLES = "volumes"
# The autoencoder learns fast and the denoiser takes the latents as they are: no decay of weights that rest.
OPTIMIZER = {"weight_decay": 0.0, "lr": 2.0}


@dataclass(frozen=True)
class Config:
    """autoencoder_share: of the training, for the VQ-VAE; the rest is the denoiser's.

    levels: sqrt(alpha-bar) of the noise that reconstructions start from.
    channels, attention_levels, num_res_blocks, head_channels, norm_groups: of MONAI's DiffusionModelUNet.
    """

    autoencoder: VqVaeConfig = field(default_factory=VqVaeConfig)
    autoencoder_share: float = 0.4
    channels: tuple[int, ...] = (24, 48)
    attention_levels: tuple[bool, ...] = (False, True)
    num_res_blocks: int = 1
    head_channels: int = 24
    norm_groups: int = 8
    schedule: ChainSchedule = field(default_factory=ChainSchedule)
    levels: tuple[float, ...] = (0.96, 0.9, 0.81, 0.7, 0.57, 0.43, 0.3, 0.18)


COMPACT = Config()
# The paper's autoencoder has four resolutions and 2048 codes of 128 numbers; its small denoiser has these channels.
LARGE = Config(
    autoencoder=VqVaeConfig(pool=1, block=2, channels=(64, 128, 256), num_res_blocks=2, num_codes=2048, code_dim=32),
    channels=(128, 256, 256),
    attention_levels=(False, False, True),
    head_channels=64,
    norm_groups=32,
    schedule=ChainSchedule(num_inference_steps=100),
    levels=tuple(round(0.97 - 0.04 * i, 2) for i in range(23)),
)
TINY = Config(
    autoencoder=VqVaeConfig(channels=(8, 16), norm_groups=4, num_codes=32, code_dim=4),
    channels=(8, 16),
    attention_levels=(False, False),
    head_channels=8,
    norm_groups=4,
    schedule=ChainSchedule(num_inference_steps=10),
    levels=(0.9, 0.6),
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


class LatentDenoiser(nn.Module):
    """Autoencoder and denoiser in one. denoising: 0 while the autoencoder learns, 1 from then on."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.autoencoder = VqVae3d(config.autoencoder)
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=config.autoencoder.code_dim,
            out_channels=config.autoencoder.code_dim,
            channels=tuple(config.channels),
            attention_levels=tuple(config.attention_levels),
            num_res_blocks=config.num_res_blocks,
            num_head_channels=config.head_channels,
            norm_num_groups=config.norm_groups,
        )
        self._multiple = 2 ** (len(config.channels) - 1)
        self.register_buffer("denoising", torch.zeros(()))

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents (n, c, x, y, z) of any size and (n,) time steps -> the predicted noise."""
        size = noisy.shape[2:]
        short = [-n % self._multiple for n in size]
        padded = functional.pad(noisy, [0, short[2], 0, short[1], 0, short[0]])
        return self.unet(padded, timesteps)[:, :, : size[0], : size[1], : size[2]]


def build(config: Config) -> nn.Module:
    """A network with fresh weights."""
    return LatentDenoiser(config)


def begin_step(model: nn.Module, config: Config, share: float) -> None:
    """Go over from the autoencoder to the denoiser when its share of the training is spent."""
    model.denoising.fill_(float(share >= config.autoencoder_share))


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y, Z) healthy brains in [0, 1].

    First the autoencoder's loss; later the mean squared error of the predicted noise (Ho et al. 2020, eq. 14), with the
    autoencoder at rest: it gets no gradient then.
    """
    if not model.denoising:
        return model.autoencoder.loss(batch)
    with torch.no_grad():
        latents = model.autoencoder.latents(model.autoencoder.coarse(batch.float()))
    steps = torch.randint(config.schedule.num_train_timesteps, (len(batch),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    predicted = model(_noised(latents, config.schedule.signal()[steps], noise), steps.to(batch.device))
    return functional.mse_loss(predicted.float(), noise)


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
    """Reconstruct (X, Y, Z) in [0, 1] from every level of the configuration.

    maps: ``residual``, the mean absolute difference over levels, and ``perceptual``, both of the pooled brain. figures:
    ``mse@level`` and ``perceptual@level``, means over the whole grid. The reconstruction is the scan with the pooled
    differences undone, so that its residual is what the model objects to and not what pooling loses.
    """
    network = model.autoencoder
    with fast_autocast(image.device):
        coarse = network.coarse(image[None, None].float())
        latents = network.latents(coarse)
        seen = network.features(coarse)
        starts = [config.schedule.start(level) for level in config.levels]
        signal = config.schedule.signal()
        noisy = [
            _noised(latents, signal[start][None], torch.randn(latents.shape, generator=generator).to(latents))
            for start in starts
        ]
        done, calls = 0, max(_calls(start, config.schedule) for start in starts)

        def denoise(samples: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            nonlocal done
            parts = zip(samples.split(batch_size), times.split(batch_size), strict=True)
            made = torch.cat([model(*part) for part in parts])
            done += 1
            if progress is not None:
                progress(done / (calls + 1))
            return made

        ends = torch.cat(plms_chains(denoise, noisy, starts, config.schedule))
        made = torch.cat([network.decode_latents(part) for part in ends.split(batch_size)])
        distances = [
            torch.cat(parts)
            for parts in zip(
                *(perceptual_maps(_repeat(seen, part), network.features(part)) for part in made.split(batch_size)),
                strict=True,
            )
        ]
    error = made - coarse
    figures = {}
    for index, level in enumerate(config.levels):
        figures[f"mse@{level:g}"] = float(error[index].square().mean())
        figures[f"perceptual@{level:g}"] = float(torch.stack([d[index].mean() for d in distances]).mean())
    perceptual = torch.stack([_enlarge(d.mean(dim=0), image.shape) for d in distances]).mean(dim=0)
    inside = brain_mask.to(image.device)
    if progress is not None:
        progress(1.0)
    return MethodOutput(
        reconstruction=(image + _enlarge(error.mean(dim=0)[0], image.shape)).clamp(0, 1) * inside,
        maps={
            "residual": _enlarge(error.abs().mean(dim=0)[0], image.shape) * inside,
            "perceptual": perceptual * inside,
        },
        variance=_enlarge(error.var(dim=0, unbiased=False)[0], image.shape) * inside if len(starts) > 1 else None,
        figures=figures,
    )


def light(config: Config) -> Config:
    """Three levels, for figures that follow a training."""
    middle = len(config.levels) // 2
    return replace(config, levels=(config.levels[0], config.levels[middle], config.levels[-1])[: len(config.levels)])


def _noised(latents: torch.Tensor, signal: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    a = signal.to(latents).reshape(-1, *([1] * (latents.ndim - 1)))
    return a * latents + (1 - a**2).clamp(min=0).sqrt() * noise


def _calls(start: int, schedule: ChainSchedule) -> int:
    return start * schedule.num_inference_steps // schedule.num_train_timesteps + 2


def _repeat(features: Sequence[torch.Tensor], like: torch.Tensor) -> list[torch.Tensor]:
    return [values.expand(len(like), *values.shape[1:]) for values in features]


def _enlarge(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(x, y, z) to the scan's grid."""
    return functional.interpolate(values[None, None].float(), tuple(shape), mode="trilinear", align_corners=False)[0, 0]
