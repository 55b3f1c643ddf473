"""How far a run is, how long it still takes, and what follows from that: learning rate and averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .settings import TrainSettings


class Budget:
    """Steps, minutes and epochs of a run on ``slices`` slices; whichever ends first."""

    def __init__(self, settings: TrainSettings, slices: int) -> None:
        self._settings = settings
        self._slices = slices

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is done; from 1 on it is over."""
        settings = self._settings
        epochs = step * settings.batch_size / self._slices
        return max(step / settings.steps, seconds / 60 / settings.minutes, epochs / settings.max_epochs)

    def expected_steps(self, step: int, seconds: float, steps_per_second: float) -> int:
        """Steps of the whole run at the given speed, at least ``step``."""
        settings = self._settings
        ends = [float(settings.steps), settings.max_epochs * self._slices / settings.batch_size]
        ends.append(step + max(0.0, settings.minutes * 60 - seconds) * steps_per_second)
        return max(step, math.ceil(min(ends)))

    def seconds_left(self, step: int, seconds: float, steps_per_second: float) -> float:
        """Time to the end at the given speed; finite, since the number of steps is."""
        by_steps = (self.expected_steps(step, seconds, steps_per_second) - step) / max(steps_per_second, 1e-9)
        return max(0.0, min(by_steps, self._settings.minutes * 60 - seconds))

    def epochs(self, step: int) -> int:
        """Whole passes over the slices after ``step`` steps (they are drawn with replacement: on average)."""
        return step * self._settings.batch_size // self._slices

    def total_epochs(self, steps: int) -> int:
        """Passes of a run of ``steps`` steps, at least 1."""
        return max(1, math.ceil(steps * self._settings.batch_size / self._slices))


def learning_rate(settings: TrainSettings, step: int, share: float) -> float:
    """Linear warm-up, then half a cosine down to zero at share 1."""
    return (
        settings.learning_rate
        * min(1.0, (step + 1) / max(settings.warmup, 1))
        * 0.5
        * (1 + math.cos(math.pi * min(share, 1.0)))
    )


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """The exponential mean of a network's weights, in eval mode; its first update copies them.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage.
    """

    @torch.no_grad()
    def update(average: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(average, current, count)

    return AveragedModel(model, multi_avg_fn=update).eval()


@torch.no_grad()
def copy_buffers(model: torch.nn.Module, average: torch.nn.Module) -> None:
    """What a network keeps beside its weights (stages, statistics, codebooks) is taken over as it is, not averaged."""
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
