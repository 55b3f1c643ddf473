"""The training loop: slices of healthy brains in, a network's averaged weights out.

Needs only torch, monai, numpy and safetensors beside this package, so that it runs on a bare training machine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monailabel_app.errors import TrainingFailed
from monailabel_app.registry import load_method

from .augment import AugmentConfig, augment_slices
from .cache import TrainingCache
from .checkpoint import TrainingState, load_state, save_state

_LOG = logging.getLogger(__name__)
_MIN_BRAIN_PIXELS = 40
_VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class TrainSettings:
    """steps or minutes, whichever ends first, end the run; the learning rate follows the larger share of the two.

    learning_rate is reached after ``warmup`` steps and falls to zero along a cosine. ema: decay of the averaged
    weights, which are what is kept. amp: bfloat16 autocast. checkpoint_every: steps.
    """

    steps: int = 20000
    minutes: float = math.inf
    batch_size: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    amp: bool = True
    device: str = "cpu"
    checkpoint_every: int = 250


@dataclass(frozen=True)
class TrainProgress:
    """What a progress bar or a log line shows. share: 0..1 of the run."""

    step: int
    share: float
    loss: float
    validation_loss: float | None
    slices_per_second: float
    seconds: float


def train(
    method_id: str,
    config: Any,
    cache: TrainingCache,
    validation: TrainingCache | None,
    settings: TrainSettings,
    run_folder: Path,
    *,
    resume: bool = False,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainingState:
    """Train ``method_id`` on the slices of ``cache`` and return the final state (its ``ema`` is the model).

    Resuming continues with the same weights, optimizer, average, random state and schedule: the loss curve of an
    interrupted run is that of an uninterrupted one. Raises TrainingFailed for a NaN loss or gradient (the last
    good checkpoint stays) and for a run folder that belongs to other settings.
    """
    method = load_method(method_id)
    device = torch.device(settings.device)
    torch.manual_seed(settings.seed)
    model = method.build(config).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    step, spent, history = 0, 0.0, []
    identity = {"method": method_id, "config": asdict(config), "settings": _fixed(settings)}
    if resume:
        state = load_state(run_folder)
        if state.settings != _plain(identity):
            raise TrainingFailed(
                "expected the checkpoint of the same method, configuration and settings, got another one; "
                "resume with the settings of the run or start a new run folder"
            )
        model.load_state_dict(state.model)
        average.module.load_state_dict(state.ema)
        average.n_averaged.fill_(state.step)
        optimizer.load_state_dict(state.optimizer)
        generator.set_state(state.generator)
        step, spent, history = state.step, state.seconds, state.history

    slices = _SlicePool(cache, device)
    held_out = _SlicePool(validation, device) if validation is not None else None
    augment = AugmentConfig()
    started = time.monotonic() - spent
    recent: list[float] = []
    state = None
    while True:
        seconds = time.monotonic() - started
        share = max(step / settings.steps, seconds / 60 / settings.minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, share, settings.warmup)
        batch = augment_slices(slices.draw(settings.batch_size, generator), augment, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
            loss = method.training_loss(model, config, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingFailed(
                f"expected a finite loss and gradient, got {value} and {norm} at step {step}; the last checkpoint is "
                "kept, start a new run with a lower learning rate"
            )
        optimizer.step()
        average.update_parameters(model)
        step += 1
        recent.append(value)
        if step % settings.checkpoint_every == 0:
            seconds = time.monotonic() - started
            quality = _validate(method, config, average, held_out, settings) if held_out else None
            entry = {"step": step, "loss": sum(recent) / len(recent)}
            entry |= {"validation_loss": quality} if quality is not None else {}
            history.append(entry)
            rate = step * settings.batch_size / seconds
            recent = []
            state = _state(model, average, optimizer, generator, step, seconds, history, identity)
            save_state(run_folder, state)
            _LOG.info("step %d of %d, loss %.5f, held-out %s, %.1f slices/s", step, settings.steps, entry["loss"],
                      f"{quality:.5f}" if quality is not None else "-", rate)
            if progress is not None:
                progress(TrainProgress(step, share, entry["loss"], quality, rate, seconds))
    if state is None or state.step != step:
        seconds = time.monotonic() - started
        state = _state(model, average, optimizer, generator, step, seconds, history, identity)
        save_state(run_folder, state)
    return state


class _SlicePool:
    """All slices with brain in them, drawn uniformly with replacement."""

    def __init__(self, cache: TrainingCache, device: torch.device) -> None:
        self._images = cache.images
        self._device = device
        self.index = torch.nonzero(cache.brain_masks.sum(dim=(1, 2)) >= _MIN_BRAIN_PIXELS)
        if len(self.index) == 0:
            raise TrainingFailed("expected slices with brain in the cache, found none; prepare the scans again")

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count, 1, X, Y) in [0, 1]."""
        return self.take(torch.randint(len(self.index), (count,), generator=generator))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The slices at the given rows of the index."""
        volume, level = self.index[rows].T
        return self._images[volume, :, :, level][:, None].to(self._device).float() / 255


@torch.inference_mode()
def _validate(method, config, average, pool: _SlicePool, settings: TrainSettings) -> float:
    """Training loss of the averaged weights on the same held-out slices and noise every time."""
    generator = torch.Generator().manual_seed(20240229)
    count = min(_VALIDATION_BATCHES, max(1, len(pool.index) // settings.batch_size))
    rows = torch.randperm(len(pool.index), generator=generator)[: count * settings.batch_size]
    losses = []
    for part in rows.split(settings.batch_size):
        with torch.autocast(settings.device.split(":")[0], torch.bfloat16, enabled=settings.amp):
            losses.append(float(method.training_loss(average, config, pool.take(part), generator)))
    return sum(losses) / len(losses)


def _schedule(step: int, share: float, warmup: int) -> float:
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * share))


def _state(model, average, optimizer, generator, step, seconds, history, identity) -> TrainingState:
    return TrainingState(
        model=model.state_dict(),
        ema=average.module.state_dict(),
        optimizer=optimizer.state_dict(),
        generator=generator.get_state(),
        step=step,
        seconds=seconds,
        history=list(history),
        settings=_plain(identity),
    )


def _fixed(settings: TrainSettings) -> dict[str, Any]:
    """The settings that make a run what it is; where and how long it runs may change on resuming."""
    return {k: v for k, v in asdict(settings).items() if k not in {"device", "minutes", "checkpoint_every"}}


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
