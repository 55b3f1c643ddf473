"""A denoiser whose every residual block is modulated by a feature vector of the clean slice.

Behrendt et al., Guided reconstruction with conditioned diffusion models (arXiv 2312.04215): the vector c stands beside
the time embedding, and both together give each block a scale and a shift, f' = f (1 + gamma) + beta.
"""

from __future__ import annotations

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding
from torch import nn
from torch.nn import functional

from .diffusion_unet import DenoiserConfig
from .slice_encoder import EncoderConfig, SliceEncoder


class ModulatedBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block with scale and shift after its second normalisation, in place of a shift before it."""

    def __init__(self, block: DiffusionUNetResnetBlock, extra: int) -> None:
        """A fresh block of the shape of ``block``, whose embedding is ``extra`` values longer."""
        super().__init__(
            spatial_dims=block.spatial_dims,
            in_channels=block.channels,
            temb_channels=block.emb_channels + extra,
            out_channels=block.out_channels,
            up=block.up,
            down=block.down,
            norm_num_groups=block.norm1.num_groups,
            norm_eps=block.norm1.eps,
        )
        self.time_emb_proj = nn.Linear(self.emb_channels, 2 * self.out_channels)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x: (n, channels, X, Y). emb: (n, emb_channels), of time and condition."""
        h = self.nonlinearity(self.norm1(x))
        resize = self.upsample if self.upsample is not None else self.downsample
        if resize is not None:
            x, h = resize(x), resize(h)
        scale, shift = self.time_emb_proj(self.nonlinearity(emb))[..., None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(h)) * (1 + scale) + shift
        return self.skip_connection(x) + self.conv2(self.nonlinearity(h))


class ConditionedUNet(DiffusionModelUNet):
    """MONAI's U-Net in two dimensions with modulated blocks. features: length of the condition."""

    def __init__(self, features: int, **options: object) -> None:
        super().__init__(spatial_dims=2, **options)
        _modulate(self, features)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """x: (n, channels, X, Y). timesteps: (n,). condition: (n, features)."""
        time = get_timestep_embedding(timesteps, self.block_out_channels[0]).to(x.dtype)
        embedding = torch.cat([self.time_embed(time), condition], dim=1)
        h = self.conv_in(x)
        kept = [h]
        for block in self.down_blocks:
            h, passed = block(hidden_states=h, temb=embedding)
            kept += passed
        h = self.middle_block(hidden_states=h, temb=embedding)
        for block in self.up_blocks:
            count = len(block.resnets)
            h = block(hidden_states=h, res_hidden_states_list=kept[-count:], temb=embedding)
            kept = kept[:-count]
        return self.out(h)


class ConditionedDenoiser(nn.Module):
    """Noisy slices, time steps and the clean slices' features -> what the prediction type asks for."""

    def __init__(self, config: DenoiserConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.encoder = SliceEncoder(encoder)
        pixels = config.block_size**2
        self.unet = ConditionedUNet(
            encoder.features,
            in_channels=pixels,
            out_channels=pixels,
            channels=tuple(config.channels),
            attention_levels=tuple(config.attention_levels),
            num_res_blocks=config.num_res_blocks,
            num_head_channels=config.head_channels,
            norm_num_groups=config.norm_groups,
            resblock_updown=config.resblock_updown,
        )

    def encode(self, clean: torch.Tensor) -> torch.Tensor:
        """(n, 1, X, Y) in [0, 1] -> (n, features)."""
        return self.encoder(clean * 2 - 1)

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        clean: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """noisy: (n, 1, X, Y). timesteps: (n,). clean: (n, 1, X, Y) in [0, 1], or its condition, from ``encode``."""
        if condition is None:
            condition = self.encode(clean)
        blocks = functional.pixel_unshuffle(noisy, self.block_size)
        return functional.pixel_shuffle(self.unet(blocks, timesteps, condition), self.block_size)


def _modulate(module: nn.Module, extra: int) -> None:
    """Put a modulated block in the place of every residual block below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, DiffusionUNetResnetBlock):
            setattr(module, name, ModulatedBlock(child, extra))
        else:
            _modulate(child, extra)
