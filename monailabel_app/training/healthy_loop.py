"""The training loop: slices of healthy brains in, a network's averaged weights out.

Needs only torch, monai, numpy and safetensors beside this package, so that it runs on a bare training machine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monailabel_app.errors import TrainingFailed
from monailabel_app.registry import load_method

from .augment import AugmentConfig, augment
from .cache import TrainingCache
from .checkpoint import TrainingState, load_state, save_state
from .completion import complete, compute, is_computed
from .distributed import process_group
from .lanes import Lane, Lanes, free_memory, is_out_of_memory, stream_seed
from .schedule import Budget, averaged, copy_buffers, learning_rate
from .settings import TrainProgress, TrainSettings, identity, same_run
from .slices import sample_pool
from .validation import Evaluate, Validator, record

__all__ = ["Evaluate", "TrainProgress", "TrainSettings", "train"]

_LOG = logging.getLogger(__name__)


def train(
    method_id: str,
    config: Any,
    cache: TrainingCache,
    validation: TrainingCache | None,
    settings: TrainSettings,
    run_folder: Path,
    *,
    resume: bool = False,
    start_from: Mapping[str, torch.Tensor] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingState:
    """Train ``method_id`` on the slices of ``cache`` and return the final state (its ``ema`` is the model).

    start_from: weights to begin with, of the network and of its average, instead of random ones; not looked at when a
    run is resumed. evaluate: gets the averaged network in eval mode at every validation; the finite numbers it returns
    go into the history and the progress. It may draw random numbers as it likes.

    Resuming continues with the same weights, optimizer, average, random state and schedule: the loss curve of an
    interrupted run is that of an uninterrupted one. Where memory runs out the batch is computed in twice as many lanes
    and the run goes on, which changes its random numbers and is noted. Started by torchrun, every process calls this
    with the same arguments; rank 0 alone validates, evaluates, saves and reports.

    Raises TrainingFailed for a NaN loss, gradient or weight and for a disk that is full (the last good checkpoint
    stays), when a single slice needs more memory than there is, for weights that do not fit the network and for a run
    folder that belongs to other settings.
    """
    if is_computed(load_method(method_id)):
        return compute(load_method(method_id), method_id, config, cache, settings, run_folder)
    with process_group(settings.device) as (group, device):
        if settings.batch_size < group.world:
            raise TrainingFailed(
                f"expected a batch of at least one slice per process, got {settings.batch_size} for {group.world} "
                "processes; use a larger batch or fewer processes"
            )
        run = _Run(method_id, config, cache, validation, settings, run_folder, group, device, progress, evaluate)
        if resume:
            run.resume()
        else:
            run.start(start_from)
        state = run.finish()
        return complete(run.method, config, cache, settings, run_folder, state) if group.is_first else state


class _Run:
    def __init__(
        self, method_id, config, cache, validation, settings, run_folder, group, device, progress, evaluate
    ) -> None:
        self.method, self.config, self.settings = load_method(method_id), config, settings
        self.folder, self.group, self.device = run_folder, group, device
        self.progress = progress
        self.identity = identity(method_id, config, settings)
        self.samples = sample_pool(cache, device, self.method, config)
        held_out = sample_pool(validation, device, self.method, config) if validation is not None else None
        self.validator = Validator(self.method, config, settings, device, held_out, evaluate)
        self.augment = AugmentConfig()
        self.budget = Budget(settings, len(self.samples))
        torch.manual_seed(settings.seed)
        self.model = self.method.build(config).to(device)
        self.average = averaged(self.model, settings.ema)
        own = dict(getattr(self.method, "OPTIMIZER", {}))
        self.rate_factor = float(own.pop("lr", 1.0))
        usual = {"weight_decay": settings.weight_decay, "betas": (0.9, 0.99)}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, **{**usual, **own})
        self.lanes = Lanes(settings.lanes, settings.batch_size, settings.seed, rank=group.rank, world=group.world)
        self.step, self.recorded = 0, -1
        self.recent: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._clock_from(0.0)

    def _clock_from(self, spent: float) -> None:
        self.seconds = self.saved_at = self.begun_at = spent
        self.begun = time.monotonic() - spent
        self.begun_step, self.told = self.step, time.monotonic()

    def start(self, weights: Mapping[str, torch.Tensor] | None) -> None:
        """Begin at step 0, from random or given weights, and find out now whether checkpoints can be written."""
        if weights is not None:
            try:
                self.model.load_state_dict(dict(weights))
            except RuntimeError as error:
                raise TrainingFailed(
                    f"expected weights of this method and configuration to start from, got others "
                    f"({' '.join(str(error).split())[:200]}); start from a model of the same preset or from scratch"
                ) from error
            self.average.module.load_state_dict(self.model.state_dict())
            self.average.n_averaged.fill_(1)
        self.group.copy_from_first([*self.model.state_dict().values(), *self.average.module.state_dict().values()])
        self._save(keep_previous=False)
        self._clock_from(0.0)

    def resume(self) -> None:
        """Take everything over from the last checkpoint."""
        state = load_state(self.folder)
        if not same_run(state.settings, self.identity):
            raise TrainingFailed(
                "expected the checkpoint of the same method, configuration and settings, got another one; "
                "resume with the settings of the run or start a new run folder"
            )
        if self.group.total([state.step])[0] != state.step * self.group.world:
            raise TrainingFailed(
                "expected all processes to read the same checkpoint, got several; put the run folder on a disk that "
                "all machines see"
            )
        self.model.load_state_dict(state.model)
        self.average.module.load_state_dict(state.ema)
        self.average.n_averaged.fill_(state.step if state.averaged is None else state.averaged)
        self.optimizer.load_state_dict(state.optimizer)
        self.lanes.restore(state.generator)
        self.step, self.history = state.step, state.history
        self.recent, self.notes = state.recent, state.notes
        self.recorded = self.history[-1]["step"] if self.history else -1
        self.validator.take_over(self.history)
        self._clock_from(state.seconds)

    def finish(self) -> TrainingState:
        """Run to the end of the budget."""
        while True:
            self.seconds = self.group.from_first(time.monotonic() - self.begun)
            share = self.budget.share(self.step, self.seconds)
            if share >= 1:
                break
            self._advance(share)
            if self.step % self.settings.checkpoint_every == 0:
                self._checkpoint()
            elif self.seconds - self.saved_at >= 60 * self.settings.checkpoint_minutes:
                self._save()
            elif time.monotonic() - self.told >= self.settings.progress_seconds:
                self._tell()
        if self.recorded != self.step and self.step:
            self._checkpoint()
        return self._state(self.group.merge(self.lanes.states()))

    def _advance(self, share: float) -> None:
        """One step of the optimizer. Raises TrainingFailed on every rank for a loss or gradient that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_factor * learning_rate(self.settings, self.step, share)
        self._begin_step(share)
        while (loss := self._gradients()) is None:
            self._use_more_lanes()
        parameters = list(self.model.parameters())
        try:
            self.group.sum_gradients(parameters)
            norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.clip))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingFailed(
                    f"expected a finite loss and gradient, got {loss} and {norm} at step {self.step}; the last "
                    "checkpoint is kept, start a new run with a lower learning rate"
                )
            self.optimizer.step()
            self._share_buffers()
            self.average.update_parameters(self.model)
            copy_buffers(self.model, self.average.module)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The weights may be half changed: this step cannot be done again.
            raise TrainingFailed(
                f"expected memory for the optimizer on {self.device.type}, got out of memory; the last checkpoint is "
                "kept, use a smaller preset or end what else uses the memory, and go on with --resume"
            ) from error
        self.step += 1
        self.recent.append(loss)

    def _begin_step(self, share: float) -> None:
        """Methods that train in stages learn here how much of the run is over."""
        if hasattr(self.method, "begin_step"):
            self.method.begin_step(self.model, self.config, share)

    def _share_buffers(self) -> None:
        """Statistics that a network keeps beside its weights are those of the first process."""
        buffers = list(self.model.buffers())
        if buffers and self.group.world > 1:
            self.group.copy_from_first(buffers)

    def _gradients(self) -> float | None:
        """The mean loss of the whole batch, its gradient left in the parameters; None when memory ran out."""
        before = self.lanes.states()
        self.optimizer.zero_grad(set_to_none=True)
        loss, full, failure = 0.0, False, None
        try:
            for lane in self.lanes:
                loss += self._lane(lane)
        except Exception as error:
            if is_out_of_memory(error):
                full = True
            else:
                failure = error
        # Out of the handler, where the traceback would keep the tensors that filled the memory.
        failures, fulls, loss = self.group.total([float(failure is not None), float(full), loss])
        if failures:
            self.group.check(failure)
        if not fulls:
            return loss
        self.optimizer.zero_grad(set_to_none=True)
        self.lanes.restore(self.group.merge(before))
        free_memory(self.device)
        return None

    def _lane(self, lane: Lane) -> float:
        # For networks with dropout, whose masks come from torch's global generator.
        torch.manual_seed(stream_seed(self.settings.seed, lane.number, self.step))
        drawn, flips = self.samples.draw(lane.size, lane.generator)
        batch = augment(drawn, self.augment, lane.generator, flips=flips)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
            loss = self.method.training_loss(self.model, self.config, batch, lane.generator)
        loss = loss * (lane.size / self.settings.batch_size)
        loss.backward()
        return float(loss.detach())

    def _use_more_lanes(self) -> None:
        size, before = self.settings.batch_size, self.lanes.largest
        if before == 1:
            raise TrainingFailed(
                f"expected memory for one slice at a time on {self.device.type}, got out of memory; the last "
                "checkpoint is kept, use a smaller preset or end what else uses the memory, and go on with --resume"
            )
        was = f"{size}" if self.lanes.count == 1 else f"{self.lanes.count} x {before}"
        self.lanes.double()
        self._note(f"out of memory at step {self.step}: batch {was} -> {self.lanes.count} x {self.lanes.largest}")

    def _note(self, note: str | None) -> None:
        if note is not None and note not in self.notes:
            self.notes.append(note)
            _LOG.warning("%s; going on", note)

    def _checkpoint(self) -> None:
        """Validate, evaluate, note, save and tell; rank 0 does it, what goes wrong is raised everywhere."""
        states = self.group.merge(self.lanes.states())
        self.recorded = self.step
        entry = {"step": self.step, "epoch": self.budget.epochs(self.step), "loss": _mean(self.recent)}
        self.recent = []
        failure = None
        if self.group.is_first:
            try:
                self._refuse_broken_weights()
                self._note(self.validator.measure(self.average.module, self.lanes.largest))
                self.history = record(self.history, entry | self.validator.entry(), self.notes)
                self._write(states)
                self._tell(entry["loss"])
            except Exception as error:
                failure = error
        else:
            self.history = record(self.history, entry, self.notes)
        self.group.check(failure)
        self.saved_at = self.seconds

    def _save(self, *, keep_previous: bool = True) -> None:
        """A checkpoint between validations."""
        states, failure = self.group.merge(self.lanes.states()), None
        if self.group.is_first:
            try:
                self._refuse_broken_weights()
                self._write(states, keep_previous)
            except Exception as error:
                failure = error
        self.group.check(failure)
        self.saved_at = self.seconds

    def _write(self, states: torch.Tensor, keep_previous: bool = True) -> None:
        save_state(self.folder, self._state(states), keep_previous=keep_previous)

    def _refuse_broken_weights(self) -> None:
        """A step can break weights while its loss and gradient were finite; such weights must not be saved."""
        for part in (self.model, self.average.module):
            if not all(bool(torch.isfinite(value).all()) for value in part.state_dict().values()):
                raise TrainingFailed(
                    f"expected finite weights, got others at step {self.step}; the last checkpoint is kept, start a "
                    "new run with a lower learning rate"
                )

    def _tell(self, loss: float | None = None) -> None:
        """Log and report. loss: of the history entry just made; between two, the mean since the last."""
        self.told = time.monotonic()
        if not self.group.is_first:
            return
        seconds = time.monotonic() - self.begun
        rate = (self.step - self.begun_step) / max(seconds - self.begun_at, 1e-6)
        steps = self.budget.expected_steps(self.step, seconds, rate)
        now = TrainProgress(
            step=self.step,
            share=min(1.0, self.budget.share(self.step, seconds)),
            loss=_mean(self.recent) if loss is None else loss,
            validation_loss=self.validator.loss,
            slices_per_second=rate * self.settings.batch_size,
            seconds=seconds,
            steps=steps,
            epoch=self.budget.epochs(self.step),
            total_epochs=self.budget.total_epochs(steps),
            seconds_left=self.budget.seconds_left(self.step, seconds, rate),
            figures=dict(self.validator.figures),
            notes=tuple(self.notes),
            checkpoint=loss is not None,
        )
        if now.checkpoint:
            held_out = f"{now.validation_loss:.5f}" if now.validation_loss is not None else "-"
            text = "step %d of about %d, loss %.5f, held-out %s, %.1f slices/s"
            _LOG.info(text, now.step, now.steps, now.loss, held_out, now.slices_per_second)
        if self.progress is not None:
            self.progress(now)

    def _state(self, generators: torch.Tensor) -> TrainingState:
        return TrainingState(
            model=self.model.state_dict(),
            ema=self.average.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            generator=generators,
            step=self.step,
            seconds=time.monotonic() - self.begun,
            history=list(self.history),
            settings=self.identity,
            recent=list(self.recent),
            averaged=int(self.average.n_averaged),
            notes=list(self.notes),
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
