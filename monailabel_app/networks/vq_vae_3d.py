"""A small vector-quantised autoencoder of whole brains: van den Oord et al. (2017), codes on the unit sphere.

The codebook is learnt by gradient descent like every other weight, so that averaged weights, resumed runs and several
processes need no care of it. Codes of length one (Yu et al., ICLR 2022) and a term that rewards the use of many codes
(Yu et al., ICLR 2024, section 3.2) keep a short training from ending with a handful of codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

_SHARPNESS = 10.0  # of the soft assignment that the use of codes is measured with
_COMMITMENT = 0.25


@dataclass(frozen=True)
class VqVaeConfig:
    """pool: the network sees averages over blocks of this side. block: side of the pooled blocks that become channels.

    channels: one entry per resolution, halved from one to the next. num_codes, code_dim: the codebook.
    """

    pool: int = 2
    block: int = 2
    channels: tuple[int, ...] = (32, 48)
    num_res_blocks: int = 1
    norm_groups: int = 8
    num_codes: int = 256
    code_dim: int = 8

    @property
    def reduction(self) -> int:
        """Side, in voxels of the scan, of the block that one code stands for; sizes must be multiples of it."""
        return self.pool * self.block * 2 ** (len(self.channels) - 1)


class Quantizer(nn.Module):
    """Replaces every vector of (n, code_dim, ...) by the nearest code, any number of spatial axes."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(functional.normalize(torch.randn(num_codes, code_dim), dim=1))

    def forward(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes, length one, with the gradient passed straight through to ``encoded``, and the loss of training."""
        with torch.autocast(encoded.device.type, enabled=False):
            vectors = functional.normalize(encoded.float(), dim=1)
            codes = functional.normalize(self.codes.float(), dim=1)
            similarity = torch.einsum("nc...,kc->nk...", vectors, codes)
            chosen = self._vectors(codes, similarity.argmax(dim=1))
            distance = functional.mse_loss(chosen, vectors.detach()) + _COMMITMENT * functional.mse_loss(
                vectors, chosen.detach()
            )
            use = torch.softmax(_SHARPNESS * similarity, dim=1).movedim(1, -1).flatten(0, -2).mean(dim=0)
            unused = 1 + (use * use.clamp(min=1e-9).log()).sum() / math.log(len(codes))
            return vectors + (chosen - vectors).detach(), distance * vectors.shape[1] + unused

    def tokens(self, encoded: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code: (n, code_dim, ...) -> (n, ...) int64."""
        with torch.autocast(encoded.device.type, enabled=False):
            codes = functional.normalize(self.codes.float(), dim=1)
            return torch.einsum("nc...,kc->nk...", encoded.float(), codes).argmax(dim=1)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """The codes of length one at (n, ...) indices: (n, code_dim, ...)."""
        return self._vectors(functional.normalize(self.codes.float(), dim=1), tokens)

    @staticmethod
    def _vectors(codes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return codes[tokens].movedim(-1, 1)


class VqVae3d(nn.Module):
    """Brains (n, 1, X, Y, Z) in [0, 1] as codes of blocks of ``reduction`` voxels, and back at the pooled resolution.

    Sizes are multiples of ``reduction``. Latents are codes scaled to unit variance: what a diffusion model expects.
    """

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.channels, config.norm_groups
        pixels = config.block**3
        self.stem = nn.Conv3d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            layers: list[nn.Module] = []
            if index:
                layers.append(nn.Conv3d(widths[index - 1], width, 2, stride=2))
            layers += [_ResBlock(width, groups) for _ in range(config.num_res_blocks)]
            self.down.append(nn.Sequential(*layers))
        self.to_code = nn.Conv3d(widths[-1], config.code_dim, 1)
        self.quantizer = Quantizer(config.num_codes, config.code_dim)
        self.from_code = nn.Conv3d(config.code_dim, widths[-1], 3, padding=1)
        self.up = nn.ModuleList()
        for index in reversed(range(len(widths))):
            layers = [_ResBlock(widths[index], groups) for _ in range(config.num_res_blocks)]
            if index:
                layers.append(nn.ConvTranspose3d(widths[index], widths[index - 1], 2, stride=2))
            self.up.append(nn.Sequential(*layers))
        self.head = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.SiLU(), nn.Conv3d(widths[0], pixels, 3, padding=1)
        )

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, X, Y, Z) at the resolution that the network works at."""
        return functional.avg_pool3d(images, self.config.pool) if self.config.pool > 1 else images

    def features(self, coarse: torch.Tensor) -> list[torch.Tensor]:
        """The encoder's activations of pooled brains, one per resolution, fine to coarse."""
        made, current = [], self.stem(_to_channels(coarse, self.config.block))
        for level in self.down:
            current = level(current)
            made.append(current)
        return made

    def encode(self, coarse: torch.Tensor) -> torch.Tensor:
        """Pooled brains (n, 1, x, y, z) -> (n, code_dim, ...) before quantisation."""
        return self.to_code(self.features(coarse)[-1])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes of length one (n, code_dim, ...) -> pooled brains (n, 1, x, y, z), not clipped."""
        current = self.from_code(codes)
        for level in self.up:
            current = level(current)
        return _from_channels(self.head(current), self.config.block)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Mean absolute and mean squared error at the pooled resolution, plus the quantiser's loss."""
        coarse = self.coarse(images.float())
        codes, extra = self.quantizer(self.encode(coarse))
        made = self.decode(codes).float()
        return 4 * functional.l1_loss(made, coarse) + 4 * functional.mse_loss(made, coarse) + 0.1 * extra

    def latents(self, coarse: torch.Tensor) -> torch.Tensor:
        """Quantised latents of unit variance, (n, code_dim, ...) float32."""
        return self.quantizer.lookup(self.tokens(coarse)) * self._unit

    def tokens(self, coarse: torch.Tensor) -> torch.Tensor:
        """(n, ...) int64, the code of every block."""
        return self.quantizer.tokens(self.encode(coarse))

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents, quantised anew, as pooled brains clipped to [0, 1]."""
        codes = self.quantizer.lookup(self.quantizer.tokens(latents))
        return self.decode(codes).float().clamp(0, 1)

    @property
    def _unit(self) -> float:
        return math.sqrt(self.config.code_dim)


def perceptual_maps(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Squared distance of two encoders' activations, each vector brought to length one: (n, ...) per resolution.

    The distance of LPIPS (Zhang et al., CVPR 2018, eq. 1) without its learnt channel weights.
    """
    return [
        (functional.normalize(a.float(), dim=1) - functional.normalize(b.float(), dim=1)).square().sum(dim=1)
        for a, b in zip(first, second, strict=True)
    ]


class _ResBlock(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv3d(width, width, 3, padding=1),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.layers(values)


def _to_channels(values: torch.Tensor, block: int) -> torch.Tensor:
    """(n, 1, x, y, z) -> (n, block^3, x / block, ...)."""
    n, _, x, y, z = values.shape
    parts = values.reshape(n, x // block, block, y // block, block, z // block, block)
    return parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, block**3, x // block, y // block, z // block)


def _from_channels(values: torch.Tensor, block: int) -> torch.Tensor:
    n, _, x, y, z = values.shape
    parts = values.reshape(n, block, block, block, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return parts.reshape(n, 1, x * block, y * block, z * block)
