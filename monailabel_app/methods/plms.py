"""Pseudo linear multi-step chains (Liu et al., PNDM, ICLR 2022) from several noise levels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.networks.schedulers import PNDMScheduler

from monailabel_app.errors import InvalidSettings

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ChainSchedule:
    """Rombach et al.'s scaled linear schedule; every ``num_train_timesteps / num_inference_steps`` th step is taken."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    num_inference_steps: int = 25

    def scheduler(self) -> PNDMScheduler:
        """A new one: MONAI's keeps the history of its chain, which must not reach the next."""
        made = PNDMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            schedule="scaled_linear_beta",
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            skip_prk_steps=True,
            set_alpha_to_one=True,
        )
        made.set_timesteps(self.num_inference_steps)
        return made

    def signal(self) -> torch.Tensor:
        """sqrt(alpha-bar) of every training step, (num_train_timesteps,) float32."""
        steps = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps, dtype=torch.float64)
        return torch.cumprod(1 - steps**2, dim=0).sqrt().float()

    def start(self, level: float) -> int:
        """The inference step whose sqrt(alpha-bar) is nearest to ``level``. Raises InvalidSettings outside (0, 1)."""
        if not 0 < level < 1:
            raise InvalidSettings(f"expected a noise level sqrt(alpha-bar) between 0 and 1, got {level}")
        stride = self.num_train_timesteps // self.num_inference_steps
        candidates = torch.arange(1, self.num_inference_steps) * stride
        return int(candidates[(self.signal()[candidates] - level).abs().argmin()])


def plms_chains(
    network: Network, noisy: Sequence[torch.Tensor], starts: Sequence[int], schedule: ChainSchedule
) -> list[torch.Tensor]:
    """Denoise ``noisy[i]``, (n, c, ...) at step ``starts[i]``, to the clean end, all chains side by side.

    network: (batch, c, ...) and (batch,) time steps -> predicted noise. A call of the network holds every chain that is
    still under way, each at its own step; what one chain gives does not depend on the others.
    """
    chains = [_Chain(sample, start, schedule) for sample, start in zip(noisy, starts, strict=True)]
    while running := [chain for chain in chains if chain.steps]:
        sizes = [len(chain.sample) for chain in running]
        times = torch.cat([torch.full((size,), chain.steps[0]) for chain, size in zip(running, sizes, strict=True)])
        samples = torch.cat([chain.sample for chain in running])
        predicted = network(samples, times.to(samples.device)).float()
        for chain, part in zip(running, predicted.split(sizes), strict=True):
            chain.advance(part)
    return [chain.sample for chain in chains]


class _Chain:
    def __init__(self, sample: torch.Tensor, start: int, schedule: ChainSchedule) -> None:
        self.sample = sample
        self.scheduler = schedule.scheduler()
        steps = [step for step in self.scheduler.timesteps.tolist() if step <= start]
        # The scheduler takes its first step twice, the second time with the mean of both predictions, but its list of
        # time steps lacks the repetition: without it every later prediction is made for a step too low.
        self.steps = steps[:2] + steps[1:]

    def advance(self, predicted: torch.Tensor) -> None:
        self.sample, _ = self.scheduler.step(predicted, self.steps.pop(0), self.sample)
