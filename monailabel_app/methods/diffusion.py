"""The diffusion engine every method shares: schedule, noising, clean estimates, sweeps and chains.

Notation: a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t), x_t = a_t x + s_t n. Images are [0, 1] outside and
[-1, 1] inside. Noise levels are given as a_t, the share of the signal that is left: "t = 500" means a different
level under every schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from monai.networks.schedulers import DDPMScheduler
from torch.nn import functional

from monailabel_app.errors import InvalidSettings
from monailabel_app.noise.gaussian import gaussian_noise
from monailabel_app.noise.simplex import simplex_noise

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DiffusionConfig:
    """noise: what is added. prediction: what the network returns. schedule: MONAI's name of the beta schedule.

    train_levels: the range of a_t that training draws from; reconstruction outside it is refused.
    """

    noise: Literal["gaussian", "simplex"] = "simplex"
    prediction: Literal["sample", "epsilon", "v_prediction"] = "sample"
    schedule: Literal["cosine", "linear_beta", "scaled_linear_beta"] = "cosine"
    num_train_timesteps: int = 1000
    loss: Literal["l1", "l2"] = "l1"
    train_levels: tuple[float, float] = (0.0, 1.0)


class DiffusionEngine:
    """Stateless but for the schedule's table: safe to share between threads."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        scheduler = DDPMScheduler(
            num_train_timesteps=config.num_train_timesteps, schedule=config.schedule, clip_sample=False
        )
        self._signal = scheduler.alphas_cumprod.double().sqrt().float()  # a_t
        self._noise = (1 - scheduler.alphas_cumprod.double()).sqrt().float()  # s_t
        low, high = config.train_levels
        self._train_steps = torch.nonzero((self._signal >= low) & (self._signal <= high)).flatten()
        if len(self._train_steps) == 0:
            raise InvalidSettings(f"expected train_levels as a range of sqrt(alpha-bar) in [0, 1], got {low}..{high}")

    def timestep(self, level: float) -> int:
        """The step whose sqrt(alpha-bar) is nearest to ``level``. Raises InvalidSettings outside the trained range."""
        low, high = self.config.train_levels
        if not low <= level <= high:
            raise InvalidSettings(f"expected a noise level sqrt(alpha-bar) between {low} and {high}, got {level}")
        return int((self._signal - level).abs().argmin())

    def level(self, timestep: int) -> float:
        """sqrt(alpha-bar) at a step."""
        return float(self._signal[timestep])

    def draw_noise(
        self, shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Unit-variance noise of the configured process, (n, 1, X, Y)."""
        sample = simplex_noise if self.config.noise == "simplex" else gaussian_noise
        return sample(shape, generator, device)

    def add_noise(self, clean: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t from x in [-1, 1]; timesteps (n,)."""
        return self._at(self._signal, timesteps, clean) * clean + self._at(self._noise, timesteps, clean) * noise

    def training_loss(
        self,
        network: Network,
        images: torch.Tensor,
        generator: torch.Generator,
        *,
        within: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss of the configured prediction over a batch (n, 1, X, Y) in [0, 1] (Ho et al. 2020, eq. 14).

        within: (n, 1, X, Y) bool, the pixels that are noised and count; the network sees the others as they are.
        """
        clean = images * 2 - 1
        index = torch.randint(len(self._train_steps), (len(images),), generator=generator)
        timesteps = self._train_steps[index].to(images.device)
        noise = self.draw_noise(images.shape, generator, images.device)
        noisy = self.add_noise(clean, timesteps, noise)
        if within is not None:
            noisy = torch.where(within, noisy, clean)
        predicted = network(noisy, timesteps).float()
        target = {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": self._at(self._signal, timesteps, clean) * noise
            - self._at(self._noise, timesteps, clean) * clean,
        }[self.config.prediction]
        distance = functional.l1_loss if self.config.loss == "l1" else functional.mse_loss
        if within is None:
            return distance(predicted, target)
        return distance(predicted[within], target[within])

    def clean_estimate(self, network: Network, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The one-step estimate of x in [-1, 1] from x_t (Salimans and Ho 2022, section 4, for v), clipped."""
        out = network(noisy, timesteps).float()
        signal, sigma = self._at(self._signal, timesteps, noisy), self._at(self._noise, timesteps, noisy)
        if self.config.prediction == "epsilon":
            out = (noisy - sigma * out) / signal
        elif self.config.prediction == "v_prediction":
            out = signal * noisy - sigma * out
        return self.bounded(out)

    @staticmethod
    def bounded(clean: torch.Tensor) -> torch.Tensor:
        """A clean estimate within the range that images have inside."""
        return clean.clamp(-1, 1)

    def chain(self, network: Network, noisy: torch.Tensor, start: int, num_steps: int) -> torch.Tensor:
        """Deterministic DDIM chain (Song et al. 2021, eq. 12 with eta 0) from step ``start`` in ``num_steps`` calls.

        One step is the one-step estimate. Returns x in [-1, 1].
        """
        steps = np.unique(np.linspace(0, start, num_steps + 1).round().astype(int))[::-1]
        current = noisy
        for now, following in pairwise(steps):
            t = torch.full((len(noisy),), int(now), device=noisy.device)
            clean = self.clean_estimate(network, current, t)
            if following == 0:
                return clean
            direction = (current - self._signal[now] * clean) / self._noise[now]
            current = self._signal[following] * clean + self._noise[following] * direction
        raise InvalidSettings(f"expected a start step above 0, got {start}: choose a lower sqrt(alpha-bar)")

    def t_sweep(
        self,
        network: Network,
        images: torch.Tensor,
        levels: Sequence[float],
        draws: int,
        generator: torch.Generator,
        *,
        chain_steps: int = 1,
    ) -> Iterator[tuple[float, int, torch.Tensor]]:
        """Clean estimates of ``images`` (n, 1, X, Y) in [0, 1], one per noise level and draw.

        Yields (level, draw, estimate in [0, 1]); residuals, likelihood terms and z-scores are all derived from it.
        """
        for level in levels:
            for draw in range(draws):
                noise = self.draw_noise(images.shape, generator, images.device)
                yield level, draw, self.restore(network, images, level, noise, chain_steps=chain_steps)

    def restore(
        self, network: Network, images: torch.Tensor, level: float, noise: torch.Tensor, *, chain_steps: int = 1
    ) -> torch.Tensor:
        """The clean estimate in [0, 1] of ``images`` (n, 1, X, Y) in [0, 1] after ``noise`` was added at ``level``."""
        start = self.timestep(level)
        t = torch.full((len(images),), start, device=images.device)
        noisy = self.add_noise(images * 2 - 1, t, noise)
        return (self.chain(network, noisy, start, chain_steps) + 1) / 2

    def _at(self, table: torch.Tensor, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return table.to(like.device)[timesteps].reshape(-1, *([1] * (like.ndim - 1)))
