"""Inversion of a style-based generator: what the generator of healthy slices cannot make is anomalous.

Woodland et al. (Bioengineering 12(10):1106, 2025): a StyleGAN2 learns healthy slices, a scan's slices are projected
onto it by back-propagation into its latents, and image and projection are compared patch by patch (the scores of
``scoring.wasserstein``). Generator and projection: Karras et al. (CVPR 2020, section 5 and appendix D); adaptive
augmentation: Karras et al. (NeurIPS 2020, arXiv 2006.06676), with three augmentations; regularisation of the
discriminator: Mescheder et al. (ICML 2018), seldom and weighted up for it; encoder: Tov et al. (SIGGRAPH 2021).

Changed here. Adversarial training alone does not come far on a processor in minutes, and its latents invert poorly: an
encoder learns along, whose reconstruction error the generator may learn from too (``generator_reconstructs``), and it
starts the projection. The distance in the features of a network for photographs, which would have to be downloaded, is
one in those of the discriminator. There is no path length regularisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from monailabel_app.networks.stylegan2 import Discriminator, Encoder, Generator, StyleGanConfig
from monailabel_app.noise.gaussian import gaussian_noise

from .output import MethodOutput, Progress, batches, fast_autocast, over_slices

# Adam of StyleGAN2: 2e-3 at the usual learning rate of a run, no momentum; decay would fight the equalised weights.
OPTIMIZER = {"betas": (0.0, 0.99), "weight_decay": 0.0, "lr": 5.0}
_MEMORY = 0.98  # of the running mean and deviation of the latents
_FEATURES_WEIGHT = 1.0
_USUAL_BATCH = 16


@dataclass(frozen=True)
class ProjectionConfig:
    """steps of Adam per slice, from the encoder's latents or the mean one. space: the latents of all layers move
    together (``w``) or each by itself (``w+``). feature_weight, latent_weight: of the distance in the discriminator's
    features and of the squared distance from the start, in deviations of w. jitter: random steps of the latents, in the
    same unit, that fade away over the first three quarters. noise: project onto the noise inputs too, which
    noise_weight keeps noise.
    """

    steps: int = 40
    learning_rate: float = 0.05
    space: Literal["w", "w+"] = "w"
    feature_weight: float = 1.0
    latent_weight: float = 0.02
    jitter: float = 0.0
    noise: bool = False
    noise_weight: float = 0.1


@dataclass(frozen=True)
class Config:
    """r1_weight, r1_share: of the gradient penalty and of the batches that pay it. mixing: share of slices made from
    two latents. augmentation: the share of positive logits of real slices, from -1 to 1, that the discriminator's
    augmentation is adapted to; None for none. reconstruction_weight, offset_weight: of the encoder's losses.
    adversarial_share: of each batch, judged and imitated; the encoder learns from all of it. slices_at_once: projected
    together.
    """

    network: StyleGanConfig = field(default_factory=StyleGanConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    r1_weight: float = 1.0
    r1_share: float = 1 / 16
    mixing: float = 0.5
    augmentation: float | None = 0.6
    adversarial_share: float = 1.0
    reconstruction_weight: float = 10.0
    offset_weight: float = 0.01
    generator_reconstructs: bool = True
    slices_at_once: int = 48


# Few latents and half of the adversarial work, for minutes on a processor.
COMPACT = Config(network=StyleGanConfig(latent=64), adversarial_share=0.5)
# The paper's kind of size for these slices: pixels instead of blocks and no encoder, latents projected from their mean
# for a thousand steps together with the noise.
LARGE = Config(
    network=StyleGanConfig(channels=(256, 256, 128, 64), latent=512, mapping_layers=8, block_size=1, encoder=False),
    projection=ProjectionConfig(steps=1000, learning_rate=0.1, jitter=0.05, latent_weight=0.0, noise=True),
)
TINY = Config(
    network=StyleGanConfig(channels=(16, 16, 8), latent=16, mapping_layers=2),
    projection=ProjectionConfig(steps=3, jitter=0.05),
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


class StyleGan(nn.Module):
    """Generator, discriminator and encoder, with what training learns beside their weights.

    latent_mean, latent_deviation: (latent,), of w. augmentation: the probability of each of the discriminator's.
    """

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(config), Discriminator(config)
        self.encoder = Encoder(config) if config.encoder else None
        self.register_buffer("latent_mean", torch.zeros(config.latent))
        self.register_buffer("latent_deviation", torch.ones(config.latent))
        self.register_buffer("augmentation", torch.zeros(()))


def build(config: Config) -> nn.Module:
    """All networks with fresh weights."""
    return StyleGan(config.network)


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Losses of discriminator, generator and encoder in one sum, from which each network gets only its own gradient.

    batch: (n, 1, X, Y) healthy slices in [0, 1]. Where no gradients are recorded, as in validation, the encoder's
    reconstruction error alone: adversarial losses say nothing about held-out slices.
    """
    if not torch.is_grad_enabled() and model.encoder is not None:
        return _reconstruction_error(model, config, batch)[0]
    real = batch[: max(1, math.ceil(config.adversarial_share * len(batch)))]
    made = generate(model, config, real.shape, generator)
    strength = float(model.augmentation) if config.augmentation is not None else 0.0
    real_seen, made_seen = augment(real, strength, generator), augment(made, strength, generator)
    real_logits = model.discriminator(real_seen)
    judged = functional.softplus(-real_logits).mean()
    judged = judged + functional.softplus(model.discriminator(made_seen.detach())).mean()
    fooled = functional.softplus(-functional_call(model.discriminator, _held(model.discriminator), made_seen)).mean()
    loss = judged + fooled
    penalised = float(torch.rand((), generator=generator)) < config.r1_share
    if torch.is_grad_enabled():
        if penalised:
            loss = loss + config.r1_weight / (2 * config.r1_share) * gradient_penalty(model.discriminator, real_seen)
        _adapt(model, config, real_logits)
    if model.encoder is not None:
        error, offsets = _reconstruction_error(model, config, batch)
        spread = (offsets / model.latent_deviation.clamp(min=1e-3)).square().mean()
        loss = loss + config.reconstruction_weight * error + config.offset_weight * spread
    return loss


def generate(model: nn.Module, config: Config, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random slices of ``shape`` (n, 1, X, Y); some from two latents, one of the coarse and one of the fine layers."""
    network, device = config.network, model.latent_mean.device
    count, size = shape[0], shape[2:]
    first, second = (
        model.generator.mapping(gaussian_noise((count, network.latent), generator, device)).float() for _ in range(2)
    )
    if torch.is_grad_enabled():
        with torch.no_grad():
            model.latent_mean.lerp_(first.mean(dim=0), 1 - _MEMORY)
            model.latent_deviation.lerp_(first.std(dim=0, unbiased=False), 1 - _MEMORY)
    cut = torch.randint(1, network.styles + 1, (count, 1, 1), generator=generator)
    mixed = torch.rand((count, 1, 1), generator=generator) < config.mixing
    fine = (mixed & (torch.arange(network.styles)[:, None] >= cut)).to(device)
    latents = torch.where(fine, second[:, None], first[:, None])
    noise = [gaussian_noise(s, generator, device) for s in model.generator.noise_shapes(count, size)]
    return model.generator(latents, noise, size)


def augment(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Mirror (in half of the cases), shift by up to an eighth, contrast: each with ``probability``, differentiably.

    (n, 1, X, Y); the black around the brain stays black.
    """
    if probability <= 0:
        return images
    count, _, width, height = images.shape
    chosen = torch.rand((3, count), generator=generator) < torch.tensor(
        [[probability / 2], [probability], [probability]]
    )
    columns = torch.arange(width).expand(count, -1)
    columns = torch.where(chosen[0][:, None], columns.flip(1), columns)
    places = []
    for coordinates, side in ((columns, width), (torch.arange(height).expand(count, -1), height)):
        moves = torch.randint(-(side // 8), side // 8 + 1, (count, 1), generator=generator)
        places.append(((coordinates + moves * chosen[1][:, None]) % side).to(images.device))
    gain = torch.exp(0.2 * torch.randn(count, generator=generator) * chosen[2]).to(images)
    index = torch.arange(count, device=images.device)[:, None, None]
    return images[:, 0][index, places[0][:, :, None], places[1][:, None]][:, None] * gain[:, None, None, None]


def gradient_penalty(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Mean squared gradient of the logits with respect to real slices (R1), in float32."""
    with torch.autocast(images.device.type, enabled=False):
        images = images.detach().float().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).mean()


def feature_distance(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n,): squared distance of features of unit length, averaged over places, summed over levels."""
    total = torch.zeros(len(first[0]), device=first[0].device)
    for one, other in zip(first, second, strict=True):
        one, other = (f.float() * torch.rsqrt(f.float().square().sum(dim=1, keepdim=True) + 1e-6) for f in (one, other))
        total = total + (one - other).square().sum(dim=1).mean(dim=(1, 2))
    return total


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
    """The slices' projections onto the generator: (X, Y, Z) in [0, 1].

    figures: ``projection_error``, the mean absolute difference within the brain, and ``latent_distance``, how many
    deviations the latents lie from those of random slices (root mean square). Records gradients whatever mode it is
    called in; slices without brain cost nothing.
    """
    found: list[torch.Tensor] = []
    group = max(_USUAL_BATCH, config.slices_at_once)
    at_once = max(1, group * batch_size // _USUAL_BATCH)

    def estimate(slices: torch.Tensor) -> tuple[torch.Tensor]:
        made, latents = project(model, config, slices, generator, at_once)
        found.append(latents)
        return (made,)

    (made,) = over_slices(image, estimate, batch_size=group, progress=progress)
    figures = {}
    if found and bool(brain_mask.any()):
        away = (torch.cat(found) - model.latent_mean) / model.latent_deviation.clamp(min=1e-3)
        figures["projection_error"] = float((image - made).abs()[brain_mask].mean())
        figures["latent_distance"] = float(away.square().mean().sqrt())
    return MethodOutput(made, figures=figures)


def light(config: Config) -> Config:
    """The encoder's latents as they are, or a few steps from the mean one: for figures that follow a training."""
    return replace(config, projection=replace(config.projection, steps=0 if config.network.encoder else 8, noise=False))


def project(
    model: nn.Module,
    config: Config,
    slices: torch.Tensor,
    generator: torch.Generator,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Back-propagation into the latents (and noise) of each slice (n, 1, X, Y); the weights stay as they are.

    Returns the projections (n, 1, X, Y) in [0, 1] and their latents (n, styles, latent). Slices do not influence each
    other, nor does batch_size, how many are projected at a time. Works under ``torch.inference_mode`` and
    ``torch.no_grad``.
    """
    begin, found = generator.get_state(), []
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode cannot take part in a backward pass, their copies can.
        slices = slices.detach().clone().float()
        for part in batches(len(slices), batch_size or len(slices)):
            # Each part draws for all slices and takes its own, so that none gets other numbers in a smaller part.
            generator.set_state(begin)
            found.append(_project(model, config, slices, generator, part))
    return torch.cat([made for made, _ in found]), torch.cat([latents for _, latents in found])


def _project(
    model: nn.Module, config: Config, everything: torch.Tensor, generator: torch.Generator, part: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    slices = everything[part]
    settings, size, device = config.projection, slices.shape[2:], slices.device

    def drawn(shape: Sequence[int]) -> torch.Tensor:
        return gaussian_noise((len(everything), *shape[1:]), generator, device)[part]

    generate_from, trunk = _frozen(model.generator), _frozen(model.discriminator.trunk)
    mean, deviation = model.latent_mean.detach().clone(), model.latent_deviation.detach().clone().clamp(min=1e-3)
    brain_pixels = (slices > 0).sum(dim=(1, 2, 3)).clamp(min=1)
    with torch.no_grad(), fast_autocast(device):
        start = mean.expand(len(slices), config.network.styles, -1)
        if model.encoder is not None:
            start = _frozen(model.encoder)(slices, mean)[0]
        wanted = trunk(slices)
    start = start.detach().clone().float()
    moves = 1 if settings.space == "w" else config.network.styles
    shift, noise = start.new_zeros((len(slices), moves, config.network.latent), requires_grad=True), None
    if settings.noise:
        shapes = model.generator.noise_shapes(len(slices), size)
        noise = [drawn(shape).clone().requires_grad_() for shape in shapes]

    def make(values: torch.Tensor) -> torch.Tensor:
        with fast_autocast(device):
            return generate_from(start + values, noise, size)

    optimizer = torch.optim.Adam([shift, *(noise or [])], lr=settings.learning_rate)
    for step in range(settings.steps):
        share = step / settings.steps
        optimizer.param_groups[0]["lr"] = settings.learning_rate * _ramp(share)
        moved = shift
        if settings.jitter and share < 0.75:
            shake = settings.jitter * (1 - share / 0.75) ** 2
            moved = shift + shake * deviation * drawn(shift.shape)
        made = make(moved)
        loss = (made - slices).abs().sum(dim=(1, 2, 3)) / brain_pixels
        if settings.feature_weight:
            with fast_autocast(device):
                seen = trunk(made)
            loss = loss + settings.feature_weight * feature_distance(seen, wanted)
        loss = loss + settings.latent_weight * (shift / deviation).square().mean(dim=(1, 2))
        if noise is not None:
            loss = loss + settings.noise_weight * sum(noise_correlation(values) for values in noise)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
        if noise is not None:
            _normalise(noise)
    with torch.no_grad():
        return make(shift).clamp(0, 1), (start + shift).detach()


def noise_correlation(noise: torch.Tensor) -> torch.Tensor:
    """(n,): squared correlation of a noise map (n, 1, X, Y) with itself one step further, at every halved size down to
    eight (CVPR 2020, appendix D): what keeps the projection from drawing the slice into the noise.
    """
    total = torch.zeros(len(noise), device=noise.device)
    while True:
        for axis in (2, 3):
            total = total + (noise * noise.roll(1, dims=axis)).mean(dim=(1, 2, 3)).square()
        if min(noise.shape[2:]) < 16:
            return total
        noise = functional.avg_pool2d(noise, 2) * 2


@torch.no_grad()
def _normalise(noise: Sequence[torch.Tensor]) -> None:
    for values in noise:
        values -= values.mean(dim=(1, 2, 3), keepdim=True)
        values *= torch.rsqrt(values.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8)


def _ramp(share: float) -> float:
    """Linear up over the first twentieth, along a cosine down over the last quarter."""
    return min(1.0, (share + 0.01) / 0.05) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / 0.25)))


def _reconstruction_error(model: nn.Module, config: Config, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the encoder's latents, and their offsets; no gradient to the discriminator, to the generator if wanted."""
    latents, offsets = model.encoder(batch, model.latent_mean.clone())
    if config.generator_reconstructs:
        made = model.generator(latents, None, batch.shape[2:])
    else:
        made = functional_call(model.generator, _held(model.generator), (latents, None, batch.shape[2:]))
    trunk, held = model.discriminator.trunk, _held(model.discriminator.trunk)
    with torch.no_grad():
        wanted = trunk(batch)
    distance = feature_distance(functional_call(trunk, held, made), wanted).mean()
    return functional.l1_loss(made, batch.float()) + 0.05 * _FEATURES_WEIGHT * distance, offsets


@torch.no_grad()
def _adapt(model: nn.Module, config: Config, real_logits: torch.Tensor) -> None:
    """More augmentation while the discriminator knows the real slices too well: from none to all in 20,000 slices."""
    if config.augmentation is not None:
        direction = torch.sign(torch.sign(real_logits).mean() - config.augmentation)
        model.augmentation.add_(direction * len(real_logits) / 20_000).clamp_(0, 0.8)


def _held(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights as constants, for ``functional_call``."""
    return {name: value.detach() for name, value in module.named_parameters()}


def _frozen(module: nn.Module):
    """The module as a function with constant weights, copied where they were made in inference mode."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held = {name: value.detach().clone() if value.is_inference() else value.detach() for name, value in state.items()}
    return lambda *arguments: functional_call(module, held, arguments)
