"""A vector-quantised autoencoder without normalisation layers, any number of spatial axes.

Van den Oord et al., Neural Discrete Representation Learning (NeurIPS 2017); encoder and decoder are MONAI's. Without
normalisation every output voxel depends on its neighbourhood alone, so that a change of some latents changes the
decoded image only around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.nets.vqvae import Decoder, Encoder
from torch import nn
from torch.nn import functional

_COMMITMENT = 0.25  # van den Oord et al., eq. 3
_DECAY = 0.95  # of the codebook's running means
_DEAD = 0.1  # a code used less than this share of the average one is moved to where codes are missing


@dataclass(frozen=True)
class VqVaeConfig:
    """channels: one entry per halving of the image; res_layers: residual units at each.

    code_dim: channels of the latents, in ``groups`` parts that are quantised one by one, each with a codebook of
    ``num_codes`` (product quantisation, Jegou et al. 2011; 1 is the published single codebook).
    """

    spatial_dims: int = 2
    channels: tuple[int, ...] = (32, 96)
    res_layers: int = 1
    code_dim: int = 16
    groups: int = 1
    num_codes: int = 512

    @property
    def reduction(self) -> int:
        """Side, in pixels, of the block that one latent vector stands for; sizes must be multiples of it."""
        return 2 ** len(self.channels)


class Quantizer(nn.Module):
    """Replaces every vector of (n, code_dim, ...) by codes that follow the encoder as running means.

    The codebook lies in buffers and is changed by ``learn`` only; the gradient passes straight through. Codes that are
    hardly used move to encoded vectors that are badly represented, so that the codebook cannot collapse.
    """

    def __init__(self, num_codes: int, code_dim: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("codes", torch.zeros(groups, num_codes, code_dim // groups))
        # Running share of the vectors that a code stands for.
        self.register_buffer("use", torch.zeros(groups, num_codes))

    def forward(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantised latents of the shape of ``encoded``, float32, and the commitment loss."""
        with torch.autocast(encoded.device.type, enabled=False):
            encoded = encoded.float()
            chosen = self.lookup(self.tokens(encoded))
            loss = _COMMITMENT * functional.mse_loss(encoded, chosen)
            return encoded + (chosen - encoded).detach(), loss

    def tokens(self, encoded: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code of every group: (n, code_dim, ...) -> (n, groups, ...) int64."""
        with torch.autocast(encoded.device.type, enabled=False):
            rows, shape = self._rows(encoded), encoded.shape
            nearest = self._distances(rows).argmin(dim=2)
            return nearest.reshape(self.groups, shape[0], *shape[2:]).movedim(0, 1)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """The codes at (n, groups, ...) indices: (n, code_dim, ...)."""
        parts = [codes[tokens[:, group]].movedim(-1, 1) for group, codes in enumerate(self.codes)]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def learn(self, encoded: torch.Tensor, generator: torch.Generator) -> None:
        """One step of the running means (van den Oord et al., appendix A.1), then new places for unused codes.

        The new places are drawn from ``encoded`` with probabilities that grow with the squared distance to the nearest
        code (Arthur and Vassilvitskii 2007).
        """
        with torch.autocast(encoded.device.type, enabled=False):
            for group, rows in enumerate(self._rows(encoded)):
                codes, use = self.codes[group], self.use[group]
                distance, nearest = torch.cdist(rows, codes).min(dim=1)
                counts = torch.bincount(nearest, minlength=len(codes)).to(rows)
                sums = torch.zeros_like(codes).index_add_(0, nearest, rows)
                # Running sums over running counts; only their quotient is kept.
                before = _DECAY * use * len(rows)
                total = before + (1 - _DECAY) * counts
                moved = (before[:, None] * codes + (1 - _DECAY) * sums) / total[:, None].clamp(min=1e-6)
                codes.copy_(torch.where(total[:, None] > 1e-6, moved, codes))
                use.copy_(total / len(rows))
                dead = torch.nonzero(use < _DEAD / len(codes)).flatten()
                if len(dead):
                    weights = distance.square().double().cpu() + 1e-12
                    drawn = torch.multinomial(weights, len(dead), len(dead) > len(rows), generator=generator)
                    codes[dead] = rows[drawn.to(rows.device)]
                    use[dead] = 1 / len(codes)

    def perplexity(self, tokens: torch.Tensor) -> torch.Tensor:
        """exp(entropy) of the codes' use in (n, groups, ...) indices, per group: 1 is collapse, num_codes the most."""
        found = []
        for group in range(self.groups):
            counts = torch.bincount(tokens[:, group].flatten()).double()
            share = counts / counts.sum()
            found.append(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
        return torch.stack(found)

    def _rows(self, encoded: torch.Tensor) -> torch.Tensor:
        """(n, code_dim, ...) -> (groups, vectors, code_dim / groups) float32."""
        flat = encoded.detach().float().movedim(1, -1).flatten(0, -2)
        return flat.reshape(len(flat), self.groups, -1).movedim(1, 0).contiguous()

    def _distances(self, rows: torch.Tensor) -> torch.Tensor:
        """Squared distances but for a term that is the same for all codes."""
        return self.codes.square().sum(dim=2)[:, None] - 2 * torch.bmm(rows, self.codes.transpose(1, 2))


class VqVae(nn.Module):
    """Images (n, 1, ...) in [0, 1] as latents (n, code_dim, .../reduction), and back."""

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        levels = len(config.channels)
        shared = {
            "spatial_dims": config.spatial_dims,
            "channels": tuple(config.channels),
            "num_res_layers": config.res_layers,
            "num_res_channels": tuple(config.channels),
            "dropout": 0.0,
            "act": "RELU",
        }
        self.encoder = Encoder(
            in_channels=1, out_channels=config.code_dim, downsample_parameters=((2, 4, 1, 1),) * levels, **shared
        )
        self.decoder = Decoder(
            in_channels=config.code_dim,
            out_channels=1,
            upsample_parameters=((2, 4, 1, 1, 0),) * levels,
            output_act=None,
            **shared,
        )
        self.quantizer = Quantizer(config.num_codes, config.code_dim, config.groups)

    def quantized(self, images: torch.Tensor) -> torch.Tensor:
        """Latents made of codes, float32."""
        return self.quantizer.lookup(self.quantizer.tokens(self.encoder(images)))

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Any latents, each vector replaced by its nearest codes."""
        return self.quantizer.lookup(self.quantizer.tokens(latents))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, code_dim, ...) -> images (n, 1, ...) float32, not clipped."""
        return self.decoder(latents).float()


def spectral_loss(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the Fourier amplitudes of images (n, c, ...): Dhariwal et al. 2020, section 3.3.

    It asks for fine texture wherever it lies, which a mean absolute error blurs away.
    """
    with torch.autocast(made.device.type, enabled=False):
        return functional.mse_loss(_amplitude(made.float()), _amplitude(target.float()))


def _amplitude(images: torch.Tensor) -> torch.Tensor:
    spectrum = torch.fft.fftn(images, dim=tuple(range(2, images.ndim)), norm="ortho")
    # The square root has no derivative at zero.
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-12)
