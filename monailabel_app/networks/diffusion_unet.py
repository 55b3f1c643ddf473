"""The 2-D denoising network: MONAI's DiffusionModelUNet, optionally on pixel blocks instead of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class DenoiserConfig:
    """block_size: side of the pixel blocks that become channels (1: none). Blocks of 2 cost a quarter at full width.

    channels, num_res_blocks, attention_levels, head_channels, norm_groups, resblock_updown: as in MONAI.
    """

    channels: tuple[int, ...] = (64, 96, 128)
    num_res_blocks: int = 1
    attention_levels: tuple[bool, ...] = (False, False, False)
    head_channels: int = 64
    norm_groups: int = 16
    resblock_updown: bool = False
    block_size: int = 2

    @property
    def size_multiple(self) -> int:
        """Sides of a slice must be multiples of this."""
        return self.block_size * 2 ** (len(self.channels) - 1)


class Denoiser(nn.Module):
    """(n, 1, X, Y) noisy slices and (n,) time steps -> (n, 1, X, Y), what the prediction type asks for."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        pixels = config.block_size**2
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=pixels,
            out_channels=pixels,
            channels=tuple(config.channels),
            attention_levels=tuple(config.attention_levels),
            num_res_blocks=config.num_res_blocks,
            num_head_channels=config.head_channels,
            norm_num_groups=config.norm_groups,
            resblock_updown=config.resblock_updown,
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Both arguments on the module's device."""
        if self.block_size == 1:
            return self.unet(noisy, timesteps)
        blocks = functional.pixel_unshuffle(noisy, self.block_size)
        return functional.pixel_shuffle(self.unet(blocks, timesteps), self.block_size)
