"""One vector per healthy brain, from the middle of a trained denoising network that is never trained further.

Meissen, Getzner et al., "How Low Can You Go? Surfacing Prototypical In-Distribution Samples" (arXiv 2312.03804) rank
scans in the feature space of a frozen encoder. The encoder here is the denoiser itself: it has only seen brains like
those it is to compare.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.errors import InvalidSettings

VERSION = 1  # of what an embedding is made of; kept ones of another version are made anew
SLABS = 4
STRIDE = 2
_MIN_BRAIN_PIXELS = 40
_BATCH = 16


class BrainEncoder:
    """Features of the middle block for clean slices at one fixed, low noise level; safe to call again and again.

    network: a Denoiser in eval mode. timestep: of the lowest noise level that the network was trained with; no noise
    is added, so that the same scan always gives the same vector. heights: first and last axial level of the brain in
    model space; between them lie the slabs.
    """

    def __init__(self, network: nn.Module, timestep: int, heights: tuple[int, int]) -> None:
        middle = getattr(getattr(network, "unet", None), "middle_block", None)
        if middle is None:
            raise InvalidSettings(
                "expected a model with a denoising U-Net to compare scans with, got another network; use a ddpm model"
            )
        self._network, self._middle, self._timestep = network, middle, timestep
        self._edges = torch.linspace(heights[0], heights[1] + 1, SLABS + 1).round().long().tolist()

    @torch.inference_mode()
    def embed(self, image: torch.Tensor, brain_mask: torch.Tensor) -> torch.Tensor:
        """image: (X, Y, Z) in [0, 1] or uint8; brain_mask: (X, Y, Z) bool -> (SLABS * channels,) float32.

        The features' mean over the brain of each slice, then over every second slice of each slab: a plain mean over
        all slices could not tell an upside-down brain from an upright one. A slab without brain gives zeros.
        """
        volume = image.float() / (255 if image.dtype == torch.uint8 else 1)
        used = (brain_mask.sum(dim=(0, 1)) >= _MIN_BRAIN_PIXELS).tolist()
        chosen = [
            [z for z in range(low, high) if used[z]][::STRIDE]
            for low, high in zip(self._edges[:-1], self._edges[1:], strict=True)
        ]
        levels = [z for slab in chosen for z in slab]
        if not levels:
            raise InvalidSettings("expected a scan with brain in it, got an empty brain mask; prepare it again")
        features = torch.cat([self._features(volume, brain_mask, levels[i : i + _BATCH])
                              for i in range(0, len(levels), _BATCH)])  # fmt: skip
        parts, start = [], 0
        for slab in chosen:
            rows = features[start : start + len(slab)]
            parts.append(rows.mean(dim=0) if slab else torch.zeros(features.shape[1]))
            start += len(slab)
        return torch.cat(parts)

    def _features(self, volume: torch.Tensor, brain_mask: torch.Tensor, levels: list[int]) -> torch.Tensor:
        slices = volume[:, :, levels].permute(2, 0, 1)[:, None] * 2 - 1
        kept: list[torch.Tensor] = []
        handle = self._middle.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            self._network(slices, torch.full((len(levels),), self._timestep))
        finally:
            handle.remove()
        shares = brain_mask[:, :, levels].permute(2, 0, 1)[:, None].float()
        weight = functional.adaptive_avg_pool2d(shares, kept[0].shape[2:])
        return (kept[0].float() * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1e-6)
