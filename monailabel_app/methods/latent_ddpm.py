"""Latent diffusion of axial slices: likelihood map, healing by inpainting, residual under the healed region.

Pinaya et al., Fast Unsupervised Brain Anomaly Detection and Segmentation with Diffusion Models (MICCAI 2022). A
vector-quantised autoencoder makes latents, a diffusion model learns those of healthy brains. What is unlikely under it
is drawn anew from its healthy surroundings. Unlike in the paper the limit of "unlikely" is healthy for its place: the
likelihood map is standardised by the healthy mean and deviation there. Without a perceptual loss, whose network cannot
be fetched where this is trained; a spectral term stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from monai.networks.nets import DiffusionModelUNet, PatchDiscriminator
from torch import nn
from torch.nn import functional

from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.vq_vae import VqVae, VqVaeConfig, spectral_loss

from .diffusion import DiffusionConfig, Network
from .latent_diffusion import LatentDiffusion
from .location_statistics import LocationStatistics
from .output import MethodOutput, Progress, fast_autocast

_SCALE_BATCHES = 100  # of the second stage, from which the latents' scale follows
_SCALE_DECAY = 0.9  # of its running estimate in the first stage, while the latents still change
_BRAIN_SHARE = 0.25  # of a latent's pixels, from which on it belongs to the brain
_MIN_BRAIN_PIXELS = 40
_GROUP = 16  # slices whose noise is drawn together


@dataclass(frozen=True)
class Config:
    """denoiser: block_size is not used. Noise levels are sqrt(alpha-bar).

    first_stage: share of the training that the autoencoder gets; the latents stay as they are afterwards.
    decoder_share: share of every later batch on which the decoder goes on learning, which changes no latent.
    spectral, adversarial: weights of these terms beside the absolute error.

    kl_levels, kl_steps: noise levels of the likelihood map; what ``finish`` learnt holds for these levels, so they must
    not be changed after a training. quantile: of the healthy standardised map, above which latents are healed. grow:
    latents by which the healed region is widened. heal_level, heal_steps: where the inpainting begins, and its calls.
    mask_sigma: smoothing of the region in pixels. healthy_slices, grid: what ``finish`` learns the usual likelihood
    from, and cells of its grid.
    """

    vq: VqVaeConfig = field(default_factory=VqVaeConfig)
    denoiser: DenoiserConfig = field(
        default_factory=lambda: DenoiserConfig(
            channels=(48, 72), attention_levels=(False, False), head_channels=24, norm_groups=8, block_size=1
        )
    )
    diffusion: DiffusionConfig = field(
        default_factory=lambda: DiffusionConfig(
            noise="gaussian",
            prediction="v_prediction",
            schedule="scaled_linear_beta",
            loss="l2",
            train_levels=(0.08, 0.99),
        )
    )
    first_stage: float = 0.45
    decoder_share: float = 0.25
    spectral: float = 1.0
    adversarial: float = 0.0
    kl_levels: tuple[float, float] = (0.22, 0.48)
    kl_steps: int = 20
    quantile: float = 0.975
    grow: int = 0
    heal_level: float = 0.22
    heal_steps: int = 20
    mask_sigma: float = 2.0
    healthy_slices: int = 480
    grid: tuple[int, int, int] = (18, 24, 10)

    @property
    def size_multiple(self) -> int:
        """Sides of a slice must be multiples of this."""
        return self.vq.reduction * 2 ** (len(self.denoiser.channels) - 1)


# Less noise than published: after a short training a small network knows little more of the noisiest latents than
# their mean.
COMPACT = Config(kl_levels=(0.3, 0.7))
# As large as the papers of the group that published the method; epsilon prediction and the adversarial term as there.
LARGE = Config(
    vq=VqVaeConfig(channels=(128, 256), res_layers=2, code_dim=32, num_codes=1024),
    denoiser=DenoiserConfig(
        channels=(256, 384),
        num_res_blocks=2,
        attention_levels=(False, True),
        head_channels=64,
        norm_groups=32,
        block_size=1,
    ),
    diffusion=DiffusionConfig(
        noise="gaussian", prediction="epsilon", schedule="scaled_linear_beta", loss="l2", train_levels=(0.0, 1.0)
    ),
    adversarial=0.01,
    kl_steps=50,
    heal_steps=50,
)
TINY = Config(
    vq=VqVaeConfig(channels=(8, 16), code_dim=4, num_codes=32),
    denoiser=DenoiserConfig(
        channels=(16, 32), attention_levels=(False, False), head_channels=16, norm_groups=8, block_size=1
    ),
    kl_steps=6,
    heal_steps=6,
    healthy_slices=128,
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}
# Two short stages instead of one long training: each has to get somewhere.
OPTIMIZER = {"lr": 2.0}


class LatentDdpm(nn.Module):
    """The autoencoder, the diffusion network on its latents, and in buffers what both were found to be like.

    stage: 0 while the autoencoder is trained, 1 afterwards. latent_mean, latent_std: per channel of the quantised
    latents. locations: the likelihood map of healthy brains.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vq = VqVae(config.vq)
        shape = config.denoiser
        self.denoiser = DiffusionModelUNet(
            spatial_dims=config.vq.spatial_dims,
            in_channels=config.vq.code_dim,
            out_channels=config.vq.code_dim,
            channels=tuple(shape.channels),
            attention_levels=tuple(shape.attention_levels),
            num_res_blocks=shape.num_res_blocks,
            num_head_channels=shape.head_channels,
            norm_num_groups=shape.norm_groups,
            resblock_updown=shape.resblock_updown,
        )
        self.discriminator = None
        if config.adversarial:
            self.discriminator = PatchDiscriminator(
                spatial_dims=config.vq.spatial_dims, channels=64, in_channels=1, num_layers_d=3, norm="INSTANCE"
            )
        self.locations = LocationStatistics(config.grid)
        self.register_buffer("stage", torch.zeros(()))
        self.register_buffer("latent_mean", torch.zeros(config.vq.code_dim))
        self.register_buffer("latent_std", torch.ones(config.vq.code_dim))
        self.register_buffer("latent_batches", torch.zeros(()))

    def latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Quantised latents at zero mean and unit deviation."""
        mean, std = self._per_channel(codes)
        return (codes - mean) / std

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of ``latents``."""
        mean, std = self._per_channel(latents)
        return latents * std + mean

    @torch.no_grad()
    def measure(self, codes: torch.Tensor) -> None:
        """Let a batch of quantised latents count for their mean and deviation.

        A running estimate in the first stage; in the second, where they do not change any more, the mean over its first
        batches, and fixed from then on.
        """
        if self.stage and self.latent_batches >= _SCALE_BATCHES:
            return
        axes = (0, *range(2, codes.ndim))
        mean, power = codes.mean(dim=axes), codes.square().mean(dim=axes)
        seen = float(self.latent_batches)
        kept = min(_SCALE_DECAY, seen / (seen + 1)) if not self.stage else seen / (seen + 1)
        power = kept * (self.latent_std.square() + self.latent_mean.square()) + (1 - kept) * power
        self.latent_mean.mul_(kept).add_((1 - kept) * mean)
        self.latent_std.copy_((power - self.latent_mean.square()).clamp(min=1e-6).sqrt())
        self.latent_batches += 1

    def _per_channel(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, *([1] * (like.ndim - 2)))
        return self.latent_mean.reshape(shape), self.latent_std.reshape(shape)


def build(config: Config) -> LatentDdpm:
    """A network with fresh weights."""
    return LatentDdpm(config)


def begin_step(model: LatentDdpm, config: Config, share: float) -> None:
    """From the autoencoder to the diffusion on its latents, when its share of the training is over."""
    if share >= config.first_stage and not model.stage:
        model.stage.fill_(1.0)
        model.latent_batches.zero_()
    elif share < config.first_stage and model.stage:
        # A training that starts from a finished model begins with the first stage again.
        model.stage.zero_()
        model.latent_batches.zero_()


def training_loss(model: LatentDdpm, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1]. The loss of the stage that the training is in."""
    stage = _latent_loss if model.stage else _image_loss
    return stage(model, config, batch, generator)


def _image_loss(model: LatentDdpm, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    encoded = model.vq.encoder(batch)
    if model.training:
        model.vq.quantizer.learn(encoded, generator)
    codes, commitment = model.vq.quantizer(encoded)
    if model.training:
        model.measure(codes)
    made = model.vq.decode(codes)
    loss = _distance(made, batch, config) + commitment
    if model.discriminator is None:
        return loss
    return loss + config.adversarial * _adversarial(model.discriminator, made, batch)


def _distance(made: torch.Tensor, images: torch.Tensor, config: Config) -> torch.Tensor:
    return functional.l1_loss(made, images.float()) + config.spectral * spectral_loss(made, images)


def _adversarial(judge: nn.Module, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Least-squares losses of the judge and of what it judges (Mao et al. 2017), in one sum without mixed gradients."""
    fixed = {name: value.detach() for name, value in judge.named_parameters()}
    fooled = (torch.func.functional_call(judge, fixed, (made,))[-1].float() - 1).square().mean()
    told = (judge(real)[-1].float() - 1).square().mean() + judge(made.detach())[-1].float().square().mean()
    return fooled + told / 2


def _latent_loss(model: LatentDdpm, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    with torch.no_grad():
        codes = model.vq.quantized(batch)
        if model.training:
            model.measure(codes)
        latents = model.latents(codes)
    loss = LatentDiffusion(config.diffusion).latent_loss(model.denoiser, latents, generator)
    count = round(config.decoder_share * len(batch))
    if count and model.training:
        # The decoder shares no weight with the diffusion, so the sum is two trainings side by side.
        loss = loss + _distance(model.vq.decode(codes[:count]), batch[:count], config)
    return loss


@torch.inference_mode()
def finish(
    model: LatentDdpm, config: Config, images: torch.Tensor, brain_masks: torch.Tensor, generator: torch.Generator
) -> None:
    """Learn the usual likelihood at every place from healthy brains: images uint8, masks bool, (n, X, Y, Z)."""
    index = torch.nonzero(brain_masks.sum(dim=(1, 2)) >= _MIN_BRAIN_PIXELS)
    if len(index) == 0:
        return
    index = index[torch.randperm(len(index), generator=generator)[: config.healthy_slices]]
    device, depth = model.stage.device, images.shape[3]
    maps, insides = [], []
    for part in index.split(16):
        volume, level = part.T
        slices = images[volume, :, :, level].to(device).float() / 255
        maps.append(_likelihood(model, config, _quantized(model, slices[:, None]), generator))
        insides.append(_covered(brain_masks[volume, :, :, level].to(device), config))
    heights = (index[:, 1].to(device) + 0.5) / depth
    if depth == 1:
        heights = torch.full_like(heights, torch.nan)
    model.locations.learn(torch.cat(maps), torch.cat(insides), heights, config.quantile)


@torch.inference_mode()
def analyse(
    model: LatentDdpm,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """The healed volume, the residual under the healed region, and the likelihood map of (X, Y, Z) in [0, 1].

    Maps: ``kl``, healthy deviations of the likelihood map above what is usual at its place. ``healed``, absolute
    residual to the healed image under the smoothed region that was healed; ``healed_signed``, the same with its sign,
    brighter is positive; ``healed_brighter``, the same, of which only one direction counts.
    """
    stack, masks = image.movedim(2, 0), brain_mask.movedim(2, 0)
    used = torch.nonzero(stack.flatten(1).amax(dim=1) > 0).flatten()
    if len(used) == 0:
        zero = torch.zeros_like(image, dtype=torch.float32)
        return MethodOutput(zero, {name: zero for name in ("kl", "healed", "healed_signed", "healed_brighter")})
    # Noise is drawn for a whole batch of these; how many of its slices the networks see at a time changes nothing.
    groups = _Batches(used, _GROUP, progress)

    inside = _covered(masks, config)
    standard = torch.zeros(inside.shape, device=image.device)
    codes = []
    for index in groups.half(0):
        codes.append(_quantized(model, stack[index][:, None], batch_size))
        standard[index] = _likelihood(model, config, codes[-1], generator, batch_size)
    standard = model.locations.standardise(standard.movedim(0, 2)).movedim(2, 0) * inside
    region = model.locations.exceeding(standard, inside, config.quantile)

    healed = torch.zeros_like(stack, dtype=torch.float32)
    for index, quantized in zip(groups.half(1), codes, strict=True):
        healed[index] = _heal(model, config, quantized, region[index][:, None], generator, batch_size)[:, 0]
    size = stack.shape[1:]
    kl = functional.interpolate(standard[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    residual = (stack - healed) * _soft(_grown(region[:, None], config.grow), size, config.mask_sigma)[:, 0]

    def volume(values: torch.Tensor) -> torch.Tensor:
        return (values * masks).movedim(0, 2).contiguous()

    signed = volume(residual)
    return MethodOutput(
        healed.movedim(0, 2).contiguous(),
        {"kl": volume(kl), "healed": signed.abs(), "healed_signed": signed, "healed_brighter": signed},
        figures={"mean_likelihood_deviation": float(standard[inside].mean()) if inside.any() else 0.0},
    )


def light(config: Config) -> Config:
    """Fewer noise levels and inpainting steps, for figures that follow a training."""
    return replace(config, kl_steps=min(config.kl_steps, 6), heal_steps=min(config.heal_steps, 6))


class _Batches:
    """Indices of the slices that hold brain, gone through twice, with one progress."""

    def __init__(self, used: torch.Tensor, size: int, progress: Progress | None) -> None:
        self._parts, self._progress = used.split(size), progress

    def half(self, number: int) -> Iterator[torch.Tensor]:
        """The batches of the first (0) or second (1) time."""
        for done, index in enumerate(self._parts, start=1):
            yield index
            if self._progress is not None:
                self._progress((number + done / len(self._parts)) / 2)


def _quantized(model: LatentDdpm, slices: torch.Tensor, batch_size: int = _GROUP) -> torch.Tensor:
    # In full precision: the nearest code must not depend on what the hardware is fast at.
    return torch.cat([model.vq.quantized(part.float()) for part in slices.split(batch_size)])


def _in_parts(network: Network, batch_size: int) -> Network:
    """The network, which sees at most so many samples at a time."""

    def call(samples: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        parts = zip(samples.split(batch_size), times.split(batch_size), strict=True)
        return torch.cat([network(*part) for part in parts])

    return call


def _likelihood(
    model: LatentDdpm, config: Config, codes: torch.Tensor, generator: torch.Generator, batch_size: int = _GROUP
) -> torch.Tensor:
    engine = LatentDiffusion(config.diffusion)
    steps = engine.spaced_steps(config.kl_levels, config.kl_steps)
    with fast_autocast(codes.device):
        return engine.likelihood_map(_in_parts(model.denoiser, batch_size), model.latents(codes), steps, generator)


def _heal(
    model: LatentDdpm,
    config: Config,
    codes: torch.Tensor,
    region: torch.Tensor,
    generator: torch.Generator,
    batch_size: int = _GROUP,
) -> torch.Tensor:
    """Slices (n, 1, X, Y) in [0, 1] decoded from codes (n, c, x, y) of which ``region`` (n, 1, x, y) was drawn anew."""
    region = _grown(region, config.grow)
    touched = torch.nonzero(region.flatten(1).any(dim=1)).flatten()
    if len(touched):
        engine, part = LatentDiffusion(config.diffusion), region[touched]
        with fast_autocast(codes.device):
            denoiser, latents = _in_parts(model.denoiser, batch_size), model.latents(codes[touched])
            drawn = engine.inpaint(denoiser, latents, part, config.heal_level, config.heal_steps, generator)
        codes = codes.clone()
        codes[touched] = torch.where(part, model.vq.nearest(model.codes(drawn)), codes[touched])
    return torch.cat([model.vq.decode(part) for part in codes.split(batch_size)]).clamp(0, 1)


def _covered(masks: torch.Tensor, config: Config) -> torch.Tensor:
    """Which latents belong to the brain: (n, X, Y) bool -> (n, x, y) bool."""
    return functional.avg_pool2d(masks[:, None].float(), config.vq.reduction)[:, 0] >= _BRAIN_SHARE


def _grown(region: torch.Tensor, by: int) -> torch.Tensor:
    return functional.max_pool2d(region.float(), 2 * by + 1, 1, by) > 0 if by else region


def _soft(region: torch.Tensor, size: torch.Size, sigma: float) -> torch.Tensor:
    """A region of latents (n, 1, x, y) at the size of the slices, its edge smoothed, in [0, 1]."""
    out = functional.interpolate(region.float(), size, mode="nearest")
    if sigma <= 0:
        return out
    radius = round(3 * sigma)
    at = torch.arange(-radius, radius + 1, device=out.device, dtype=out.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = functional.conv2d(out, kernel.reshape(1, 1, -1, 1), padding=(radius, 0))
    return functional.conv2d(out, kernel.reshape(1, 1, 1, -1), padding=(0, radius))
