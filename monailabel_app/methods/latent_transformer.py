"""Likelihood of a brain's codes under a transformer that has read healthy ones.

Graham et al., "Transformer-based out-of-distribution detection for clinically safe segmentation" (MIDL 2022), which
they compare the 3-D latent diffusion with: a VQ-VAE turns a scan into codes, a transformer predicts each code from
those before it in raster order. The negative log-likelihood of a code, laid back over its block, is the anomaly map;
the sum over all codes is the scan's score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from monai.networks.nets import DecoderOnlyTransformer
from torch import nn
from torch.nn import functional

from monailabel_app.errors import InvalidVolume
from monailabel_app.networks.vq_vae_3d import VqVae3d, VqVaeConfig

from .output import MethodOutput, Progress, fast_autocast

SAMPLES = "volumes"
OPTIMIZER = {"weight_decay": 0.0, "lr": 2.0}


@dataclass(frozen=True)
class Config:
    """autoencoder_share: of the training, for the VQ-VAE. max_codes: the longest sequence. width, depth, heads: size.

    dropout: of the transformer's input, which overfits to few scans otherwise.
    """

    autoencoder: VqVaeConfig = field(default_factory=lambda: VqVaeConfig(num_codes=128))
    autoencoder_share: float = 0.35
    max_codes: int = 1080
    width: int = 96
    depth: int = 5
    heads: int = 4
    dropout: float = 0.1


COMPACT = Config()
LARGE = Config(
    autoencoder=VqVaeConfig(pool=1, block=2, channels=(64, 128, 256), num_res_blocks=2, num_codes=2048, code_dim=32),
    width=256,
    depth=22,
    heads=8,
)
TINY = Config(
    autoencoder=VqVaeConfig(channels=(8, 16), norm_groups=4, num_codes=16, code_dim=4), width=16, depth=2, heads=2
)
PRESETS = {"compact": COMPACT, "large": LARGE, "tiny": TINY}


class CodeReader(nn.Module):
    """Autoencoder and transformer in one. reading: 0 while the autoencoder learns, 1 from then on."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.autoencoder = VqVae3d(config.autoencoder)
        self.begin = config.autoencoder.num_codes  # the token before the first code
        self.transformer = DecoderOnlyTransformer(
            num_tokens=config.autoencoder.num_codes + 1,
            max_seq_len=config.max_codes,
            attn_layers_dim=config.width,
            attn_layers_depth=config.depth,
            attn_layers_heads=config.heads,
            embedding_dropout_rate=config.dropout,
            use_flash_attention=True,
        )
        self.max_codes = config.max_codes
        self.register_buffer("reading", torch.zeros(()))
        for module in self.transformer.modules():
            # A constant as large as the sequence squared, which fused attention does not even look at.
            if "causal_mask" in module._buffers:
                module.register_buffer("causal_mask", torch.zeros(0), persistent=False)

    def negative_log_likelihood(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, x, y, z) codes -> the surprise of each given those before it, in nats, of the same shape.

        Raises InvalidVolume for more codes than the model was built for.
        """
        sequence = codes.flatten(1)
        if sequence.shape[1] > self.max_codes:
            raise InvalidVolume(
                f"expected at most {self.max_codes} codes, got {sequence.shape[1]}; use a grid no larger than trained"
            )
        begin = torch.full_like(sequence[:, :1], self.begin)
        logits = self.transformer(torch.cat([begin, sequence[:, :-1]], dim=1)).float()
        return functional.cross_entropy(logits.transpose(1, 2), sequence, reduction="none").reshape(codes.shape)


def build(config: Config) -> nn.Module:
    """A network with fresh weights."""
    return CodeReader(config)


def begin_step(model: nn.Module, config: Config, share: float) -> None:
    """Go over from the autoencoder to the transformer when its share of the training is spent."""
    model.reading.fill_(float(share >= config.autoencoder_share))


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y, Z) healthy brains in [0, 1]. First the autoencoder's loss, later the codes' surprise."""
    if not model.reading:
        return model.autoencoder.loss(batch)
    with torch.no_grad():
        codes = model.autoencoder.tokens(model.autoencoder.coarse(batch.float()))
    return model.negative_log_likelihood(codes).mean()


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
    """maps: ``surprise``, of the codes of (X, Y, Z), in nats per code, interpolated. figures: ``surprise``, their sum,
    and ``surprise_brain``, the mean over blocks with brain in them. Nothing is random.
    """
    network = model.autoencoder
    with fast_autocast(image.device):
        codes = network.tokens(network.coarse(image[None, None].float()))
        surprise = model.negative_log_likelihood(codes)
    inside = brain_mask.to(image.device)
    blocks = functional.max_pool3d(inside[None, None].float(), config.autoencoder.reduction)[:, 0] > 0
    enlarged = functional.interpolate(surprise[None], tuple(image.shape), mode="trilinear", align_corners=False)[0, 0]
    if progress is not None:
        progress(1.0)
    brain = surprise[blocks].mean() if bool(blocks.any()) else surprise.new_zeros(())
    return MethodOutput(
        maps={"surprise": enlarged * inside},
        figures={"surprise": float(surprise.sum()), "surprise_brain": float(brain), "chance": math.log(model.begin)},
    )
