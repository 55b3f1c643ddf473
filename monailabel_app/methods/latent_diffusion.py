"""Diffusion on latents: the shared engine without the range of images, likelihood maps, and inpainting.

Latents are expected with unit variance; they have no bounds, so nothing is clipped. Any number of spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from .diffusion import DiffusionEngine, Network


class LatentDiffusion(DiffusionEngine):
    """``DiffusionEngine`` for latents (n, c, ...) of unit variance."""

    def latent_loss(self, network: Network, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean loss of the configured prediction (Ho et al. 2020, eq. 14)."""
        return self.training_loss(network, (latents + 1) / 2, generator)

    @staticmethod
    def bounded(clean: torch.Tensor) -> torch.Tensor:
        """As it is: clipping latents would distort them and their likelihood."""
        return clean

    def likelihood_weight(self, timestep: int) -> float:
        """(SNR(t - 1) - SNR(t)) / 2, SNR(t) = alpha-bar / (1 - alpha-bar).

        Times the squared error of the clean estimate it is the divergence of the reverse step from the true posterior,
        both with the posterior's variance (Kingma et al. 2021, eq. 13).
        """
        ratio = (self._signal.double() / self._noise.double()) ** 2
        return float(ratio[timestep - 1] - ratio[timestep]) / 2

    def spaced_steps(self, levels: tuple[float, float], count: int) -> list[int]:
        """``count`` equally spaced steps, first to last noisier, over a range of sqrt(alpha-bar)."""
        ends = sorted(self.timestep(level) for level in levels)
        return [int(step) for step in np.unique(np.linspace(max(ends[0], 1), ends[1], count).round())]

    def likelihood_map(
        self, network: Network, latents: torch.Tensor, steps: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        """Mean over steps and channels of the likelihood's terms, fresh noise for each: (n, c, ...) -> (n, ...)."""
        total = torch.zeros_like(latents[:, 0])
        for step in steps:
            t = torch.full((len(latents),), step, device=latents.device)
            noisy = self.add_noise(latents, t, self.draw_noise(latents.shape, generator, latents.device))
            error = (latents - self.clean_estimate(network, noisy, t)).square().mean(dim=1)
            total += self.likelihood_weight(step) * error
        return total / len(steps)

    def inpaint(
        self,
        network: Network,
        latents: torch.Tensor,
        replaced: torch.Tensor,
        level: float,
        num_steps: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Draw the vectors where ``replaced`` (n, 1, ...) bool anew, given the others, which stay exactly as they are.

        Lugmayr et al., RePaint (CVPR 2022), algorithm 1 without resampling, along a deterministic chain (Song et al.
        2021, eq. 12) of ``num_steps`` calls that begins at ``level``.
        """
        steps = np.unique(np.linspace(0, self.timestep(level), num_steps + 1).round().astype(int))[::-1]
        t = torch.full((len(latents),), int(steps[0]), device=latents.device)
        current = self.add_noise(latents, t, self.draw_noise(latents.shape, generator, latents.device))
        for now, following in pairwise(steps):
            t = torch.full_like(t, int(now))
            clean = self.clean_estimate(network, current, t)
            if following == 0:
                current = torch.where(replaced, clean, latents)
                break
            direction = (current - self._signal[now] * clean) / self._noise[now]
            unknown = self._signal[following] * clean + self._noise[following] * direction
            noise = self.draw_noise(latents.shape, generator, latents.device)
            known = self.add_noise(latents, torch.full_like(t, int(following)), noise)
            current = torch.where(replaced, unknown, known)
        return current
