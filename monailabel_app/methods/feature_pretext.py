"""What an encoder is trained on when there are no labels and no ImageNet weights: tasks made from healthy slices.

``contrast``: features of one place agree between two renderings of a slice and differ from those of other places
(dense InfoNCE; O Pinheiro et al., NeurIPS 2020). ``restore``: the slice from a copy with coarse noise and missing boxes
(Kascenas et al., MIDL 2022; Pathak et al., CVPR 2016). ``corruption``: which kind of local corruption is at each place.
All randomness comes from a CPU generator, so that a run repeats on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.errors import InvalidSettings

PRETEXTS = ("contrast", "restore", "corruption")
_EMBEDDING, _PLACES, _TEMPERATURE = 32, 48, 0.2
KINDS = ("none", "brighter", "darker", "texture", "blurred", "foreign", "flat")
_NONE_WEIGHT = 0.2  # most places are not corrupted
_CORRUPTIONS = 3

Features = Callable[[torch.Tensor], torch.Tensor]


def build_head(pretext: str, channels: int) -> nn.Module:
    """The small network between the features and the task. Raises InvalidSettings for an unknown task."""
    if pretext not in PRETEXTS:
        raise InvalidSettings(f"expected a pretext task out of {', '.join(PRETEXTS)}, got {pretext!r}")
    if pretext == "restore":
        # Pixel blocks of 4 cover feature maps of 1/4 and, cut to size, of 1/2.
        return nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 16, 1), nn.PixelShuffle(4))
    return nn.Conv2d(channels, _EMBEDDING if pretext == "contrast" else len(KINDS), 1)


def pretext_loss(
    pretext: str, features: Features, head: nn.Module, slices: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The scalar loss of a task for slices (n, 1, X, Y) in [0, 1]."""
    task = {"contrast": _contrast_loss, "restore": _restore_loss, "corruption": _corruption_loss}[pretext]
    return task(features, head, slices, generator)


def rendering(slices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same anatomy from another scanner: strong gamma, gain, smooth bias and noise; background stays 0."""
    n = len(slices)
    gamma = torch.exp(0.35 * _normal(generator, n, 1, 1, 1)).to(slices)
    gain = torch.exp(0.15 * _normal(generator, n, 1, 1, 1)).to(slices)
    bias = torch.exp(0.15 * _smooth(slices, generator, 4)).to(slices)
    noise = 0.04 * _normal(generator, *slices.shape).to(slices) * _uniform(generator, n, 1, 1, 1).to(slices)
    out = (slices.clamp(min=0) ** gamma * gain * bias + noise).clamp(0, 1)
    return torch.where(slices > 0, out, 0)


def corrupted(slices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices with up to three local corruptions, and which kind is where.

    Ellipses with soft borders of every orientation, axes 1 to 14 pixels. Returns (n, 1, X, Y) in [0, 1] and (n, X, Y)
    int64, an index of ``KINDS``.
    """
    out, kinds = slices, torch.zeros(len(slices), *slices.shape[2:], dtype=torch.long, device=slices.device)
    for _ in range(_CORRUPTIONS):
        alpha = _ellipses(slices, generator).to(slices)
        kind = torch.randint(1, len(KINDS), (len(slices),), generator=generator)
        present = (torch.rand(len(slices), generator=generator) < 0.7) & (slices.flatten(1).amax(1).cpu() > 0)
        change = (0.08 + 0.5 * _uniform(generator, len(slices), 1, 1, 1)).to(slices)
        level = _uniform(generator, len(slices), 1, 1, 1).to(slices)
        texture = _smooth(slices, generator, slices.shape[2] // 3).to(slices)
        other = out[torch.randperm(len(slices), generator=generator)]
        other = torch.roll(other, tuple(torch.randint(-12, 13, (2,), generator=generator).tolist()), dims=(2, 3))
        blurred = functional.avg_pool2d(out, 5, 1, padding=2)
        brighter, darker, textured = out * (1 + change), out * (1 - change), out + 0.5 * change * texture
        variants = torch.stack([out, brighter, darker, textured, blurred, other, level.expand_as(out)])
        made = variants[kind.to(slices.device), torch.arange(len(slices), device=slices.device)]
        alpha = alpha * present.to(slices)[:, None, None, None] * (slices > 0)
        out = (out + alpha * (made - out)).clamp(0, 1)
        kinds = torch.where(alpha[:, 0] > 0.5, kind.to(slices.device)[:, None, None], kinds)
    return out, kinds


def _contrast_loss(
    features: Features, head: nn.Module, slices: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    first, second = (head(features(rendering(slices, generator))).float() for _ in range(2))
    brain = functional.adaptive_avg_pool2d((slices > 0).float(), first.shape[-2:]).flatten(1)
    # Places are drawn with a chance that grows with their share of brain.
    keys = torch.rand(brain.shape, generator=generator).clamp(min=1e-6).to(brain) ** (1 / brain.clamp(min=1e-3))
    places = keys.topk(min(_PLACES, brain.shape[1]), dim=1).indices
    drawn = [
        functional.normalize(maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1)), dim=1)
        .transpose(1, 2)
        .flatten(0, 1)
        for maps in (first, second)
    ]
    with torch.autocast(slices.device.type, enabled=False):
        similarity = drawn[0] @ drawn[1].T / _TEMPERATURE
    wanted = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, wanted) + functional.cross_entropy(similarity.T, wanted)) / 2


def _restore_loss(
    features: Features, head: nn.Module, slices: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    noise = 0.2 * _smooth(slices, generator, 16).to(slices)
    missing = _uniform(generator, len(slices), 1, slices.shape[2] // 8, slices.shape[3] // 8) < 0.2
    missing = functional.interpolate(missing.float(), slices.shape[2:]).to(slices)
    noisy = torch.where(slices > 0, (slices + noise) * (1 - missing), 0)
    made = functional.interpolate(head(features(noisy)).float(), slices.shape[2:], mode="area")
    brain = (slices > 0).float()
    return ((made - slices).abs() * brain).sum() / brain.sum().clamp(min=1)


def _corruption_loss(
    features: Features, head: nn.Module, slices: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    images, kinds = corrupted(rendering(slices, generator), generator)
    logits = functional.interpolate(head(features(images)).float(), slices.shape[2:], mode="bilinear")
    weights = torch.ones(len(KINDS), device=slices.device)
    weights[0] = _NONE_WEIGHT
    target = torch.where(slices[:, 0] > 0, kinds, -100)
    if not bool((target >= 0).any()):
        return logits.sum() * 0
    return functional.cross_entropy(logits, target, weight=weights, ignore_index=-100)


def _ellipses(slices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One soft ellipse per slice, centred on its brain: (n, 1, X, Y) in [0, 1], on the CPU."""
    n, _, size_x, size_y = slices.shape
    weight = (slices > 0).float().flatten(1).cpu() + 1e-6
    centre = torch.multinomial(weight, 1, generator=generator)[:, 0]
    x = torch.arange(size_x)[None, :, None] - (centre // size_y)[:, None, None]
    y = torch.arange(size_y)[None, None, :] - (centre % size_y)[:, None, None]
    angle = math.pi * _uniform(generator, n, 1, 1)
    axes = torch.exp(_uniform(generator, n, 2, 1, 1) * math.log(14))
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = torch.sqrt((along / axes[:, 0]) ** 2 + (across / axes[:, 1]) ** 2)
    softness = 0.05 + 0.4 * _uniform(generator, n, 1, 1)
    return torch.sigmoid((1 - distance) / softness * 3)[:, None]


def _smooth(slices: torch.Tensor, generator: torch.Generator, cells: int) -> torch.Tensor:
    """Noise that varies over about 1 / cells of a slice: (n, 1, X, Y), on the CPU."""
    coarse = _normal(generator, len(slices), 1, cells, cells)
    return functional.interpolate(coarse, slices.shape[2:], mode="bicubic", align_corners=True)


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def _uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator)
