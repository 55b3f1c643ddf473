"""A small style-based generator of slices, its discriminator and an encoder, written from the papers' equations.

Karras et al., Analyzing and improving the image quality of StyleGAN (CVPR 2020, arXiv 1912.04958): mapping network,
weight modulation and demodulation (equations 1 to 3), noise inputs, skip outputs, residual discriminator. Karras
et al., Progressive growing of GANs (ICLR 2018): equalised learning rate, minibatch standard deviation. Tov et al.,
Designing an encoder for StyleGAN image manipulation (SIGGRAPH 2021): one latent and small offsets from it per layer.

Changed for small slices and processors: images are made and judged as pixel blocks, which costs a quarter at blocks of
two; each level starts with bilinear upsampling, which is the papers' [1, 3, 3, 1] filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.errors import InvalidSettings

_GROUP = 4  # slices that share one minibatch standard deviation


@dataclass(frozen=True)
class StyleGanConfig:
    """size: of the learned constant's slices (others are served by interpolating it). channels: coarse to fine, used in
    reverse by discriminator and encoder. latent: length of z and w. block_size: side of the pixel blocks.
    """

    size: tuple[int, int] = (72, 96)
    channels: tuple[int, ...] = (96, 64, 32)
    latent: int = 128
    mapping_layers: int = 3
    block_size: int = 2
    encoder: bool = True

    @property
    def size_multiple(self) -> int:
        """Sides of a slice must be multiples of this."""
        return self.block_size * 2 ** (len(self.channels) - 1)

    @property
    def styles(self) -> int:
        """How many latents a slice takes in W+: one per convolution."""
        return 2 * len(self.channels) - 1


class EqualLinear(nn.Module):
    """Linear layer with unit-variance weights that are scaled when used: every weight learns at the same speed."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, speed: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / speed)
        self.bias = nn.Parameter(torch.full((outputs,), bias / speed))
        self._scale, self._speed = speed / math.sqrt(inputs), speed

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return functional.linear(values, self.weight * self._scale, self.bias * self._speed)


class EqualConv(nn.Module):
    """Convolution of odd kernel size with the same scaling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self._scale, self._padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(n, inputs, X, Y) -> (n, outputs, X, Y)."""
        return functional.conv2d(values, self.weight * self._scale, self.bias, padding=self._padding)


class ModulatedConv(nn.Module):
    """w'_ijk = s_i w_ijk, then divided by sqrt(sum_ik w'_ijk^2 + eps) per output channel j (CVPR 2020, eq. 1 and 3).

    Scaling a kernel's inputs is scaling the features that go in, and dividing its output channel is dividing what comes
    out: one shared convolution serves the whole batch, where per-slice kernels would need a grouped one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, latent: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.style = EqualLinear(latent, inputs, bias=1.0)
        self.conv = EqualConv(inputs, outputs, kernel, bias=False)
        self._demodulate = demodulate

    def forward(self, values: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """(n, inputs, X, Y) and (n, latent) -> (n, outputs, X, Y)."""
        style = self.style(latent).float()
        out = self.conv(values * style[:, :, None, None].to(values.dtype))
        if not self._demodulate:
            return out
        with torch.autocast(values.device.type, enabled=False):
            power = (self.conv.weight.float() * self.conv._scale).square().sum(dim=(2, 3))
            norm = torch.rsqrt(style.square() @ power.T + 1e-8)
        return out * norm[:, :, None, None].to(out.dtype)


class StyledLayer(nn.Module):
    """Modulated convolution, scaled noise, bias, leaky rectifier of unit gain."""

    def __init__(self, inputs: int, outputs: int, latent: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, latent)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, values: torch.Tensor, latent: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """noise: (n, 1, X, Y) or None for none."""
        out = self.conv(values, latent)
        if noise is not None:
            out = out + (self.noise_strength * noise).to(out.dtype)
        return _rectify(out + self.bias[:, None, None].to(out.dtype))


class Mapping(nn.Module):
    """z ~ N(0, 1) -> w; the input is normalised, the layers learn a hundred times slower than the rest."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        size = config.latent
        self.layers = nn.ModuleList(EqualLinear(size, size, speed=0.01) for _ in range(config.mapping_layers))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(n, latent) -> (n, latent)."""
        out = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            out = _rectify(layer(out))
        return out


class Generator(nn.Module):
    """Latents (n, styles, latent) and noise -> slices (n, 1, X, Y), about [0, 1] but not clipped."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        multiple = config.size_multiple
        if any(side % multiple for side in config.size):
            raise InvalidSettings(f"expected sides that are multiples of {multiple}, got {config.size}")
        self.config, self._base = config, tuple(side // multiple for side in config.size)
        widths = config.channels
        self.mapping = Mapping(config)
        self.constant = nn.Parameter(torch.randn(1, widths[0], *self._base))
        pairs = [(widths[0], widths[0])]
        for before, width in pairwise(widths):
            pairs += [(before, width), (width, width)]
        self.layers = nn.ModuleList(StyledLayer(*pair, config.latent) for pair in pairs)
        # Coarser levels add an image at their own size, the last one the pixels of each block.
        outputs = [1] * (len(widths) - 1) + [config.block_size**2]
        self.images = nn.ModuleList(
            ModulatedConv(width, out, 1, config.latent, demodulate=False)
            for width, out in zip(widths, outputs, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(()))

    def noise_shapes(self, count: int, size: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """Of the noise maps for ``count`` slices of a size, one per layer."""
        base = [side // self.config.size_multiple for side in size]
        levels = [0] + [level for level in range(1, len(self.config.channels)) for _ in range(2)]
        return [(count, 1, base[0] * 2**level, base[1] * 2**level) for level in levels]

    def forward(
        self, latents: torch.Tensor, noise: Sequence[torch.Tensor] | None = None, size: Sequence[int] | None = None
    ) -> torch.Tensor:
        """latents: (n, styles, latent). noise: one map per layer, or None for none. size: of the slices, by default the
        configured one."""
        base = self._base if size is None else tuple(side // self.config.size_multiple for side in size)
        out = self.constant
        if base != self._base:
            out = functional.interpolate(out, base, mode="bilinear", align_corners=False)
        out = out.expand(len(latents), -1, -1, -1)
        image, index = None, 0
        for level, to_image in enumerate(self.images):
            if level:
                out, image = _double(out), _double(image)
            for _ in range(2 if level else 1):
                out = self.layers[index](out, latents[:, index], None if noise is None else noise[index])
                index += 1
            made = to_image(out, latents[:, index - 1]).float()
            if level == len(self.images) - 1 and self.config.block_size > 1:
                made = functional.pixel_shuffle(made, self.config.block_size)
                if image is not None:
                    image = functional.interpolate(
                        image, scale_factor=self.config.block_size, mode="bilinear", align_corners=False
                    )
            image = made if image is None else image + made
        return image + self.bias


class _Trunk(nn.Module):
    """Residual blocks from pixel blocks to the coarsest level, whose features every level gives away."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.block_size = config.block_size
        self.first = EqualConv(config.block_size**2, widths[0], 3)
        pairs = list(pairwise(widths))
        self.keep = nn.ModuleList(EqualConv(before, before, 3) for before, _ in pairs)
        self.widen = nn.ModuleList(EqualConv(before, width, 3) for before, width in pairs)
        self.skip = nn.ModuleList(EqualConv(before, width, 1, bias=False) for before, width in pairs)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(n, 1, X, Y) in [0, 1] -> features per level, fine to coarse."""
        out = images * 2 - 1
        if self.block_size > 1:
            out = functional.pixel_unshuffle(out, self.block_size)
        features = [_rectify(self.first(out))]
        for keep, widen, skip in zip(self.keep, self.widen, self.skip, strict=True):
            inner = _rectify(widen(_halve(_rectify(keep(features[-1])))))
            features.append((inner + skip(_halve(features[-1]))) / math.sqrt(2))
        return features


class Discriminator(nn.Module):
    """Slices (n, 1, X, Y) in [0, 1] -> logits (n,), higher where they look real."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.trunk = _Trunk(config)
        self.last = EqualConv(width + 1, width, 3)
        self.hidden = EqualLinear(width * 12, width)
        self.logit = EqualLinear(width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The batch is judged together: every slice is told how much those of its group differ."""
        out = self.trunk(images)[-1]
        out = _rectify(self.last(torch.cat([out, minibatch_deviation(out)], dim=1)))
        out = functional.adaptive_avg_pool2d(out, (3, 4)).flatten(1)
        return self.logit(_rectify(self.hidden(out)))[:, 0].float()


class Encoder(nn.Module):
    """Slices (n, 1, X, Y) -> latents (n, styles, latent) around a given mean: one for all layers, offsets per layer."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.trunk = _Trunk(config)
        self.hidden = EqualLinear(width * 12, 2 * width)
        self.common = EqualLinear(2 * width, config.latent)
        self.offsets = EqualLinear(2 * width, config.styles * config.latent)
        self._shape = (config.styles, config.latent)

    def forward(self, images: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents, and the offsets from the common one within them, both (n, styles, latent)."""
        out = functional.adaptive_avg_pool2d(self.trunk(images)[-1], (3, 4)).flatten(1)
        out = _rectify(self.hidden(out))
        offsets = self.offsets(out).float().reshape(len(images), *self._shape)
        return mean + self.common(out).float()[:, None] + offsets, offsets


def minibatch_deviation(features: torch.Tensor) -> torch.Tensor:
    """(n, c, X, Y) -> (n, 1, X, Y): the mean over features of the deviation over groups of four slices (all, where n
    is no multiple of four): a generator that always makes the same slice is found out by it.
    """
    count = len(features)
    group = _GROUP if count % _GROUP == 0 else count
    grouped = features.float().reshape(group, count // group, *features.shape[1:])
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, *features.shape[2:]).to(features.dtype)


def _rectify(values: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(values, 0.2) * math.sqrt(2)


def _double(values: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)


def _halve(values: torch.Tensor) -> torch.Tensor:
    """Means of two by two: as ``avg_pool2d``, whose way back is slow on processors."""
    return functional.interpolate(values, scale_factor=0.5, mode="bilinear", align_corners=False)
