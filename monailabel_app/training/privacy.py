"""Differentially private fine-tuning on a site's healthy scans: DP-SGD with the patient as the unit.

Abadi et al. 2016 with Poisson sampling, by Opacus; the recipe of Lyu et al. 2023 (DP-LDM: tune little, clip small,
start from public weights) with whole patients instead of images. With (epsilon, delta) spent, whoever sees everything
that this module calls releasable can tell hardly better than that bound allows whether a given patient took part.

What is covered: the weights (last, averaged, and each checkpoint's), the optimizer's state and the history, which holds
the accountant's figures only. Averaging and the fixed schedule are post-processing. Augmentations and the k slices lie
inside a patient's mean, so they cost nothing. Intensities are normalised scan by scan: no scale is learnt from many.

What is not covered, and must not be released from a private training:
- the loss on the patients and anything measured on them (validation, percentiles, thresholds, held-out figures, a
  membership test). So none is taken here: no early stopping, no choice of a checkpoint; TrainProgress.loss is NaN, "not
  told". A private model keeps the calibration of the public weights it started from.
- the run folder while the run goes on: it holds the random states, with which the noise can be subtracted. They and
  the fingerprint of the data are wiped from the checkpoint when the run ends (not from a disk's sectors or backups).
- the number of patients, which counts as public (add or remove one patient; replacing one takes twice the noise), which
  scans are healthy and usable at all, the time a step took, that a run ended with an error, and values chosen by trying
  on the same patients: choose settings on public data.
- rounding: attacks on floating-point noise (Mironov 2012) are not excluded; the generators are not cryptographic
  (Opacus' secure mode needs torchcsprng, which this version of PyTorch has no build of).

Resuming: a checkpoint holds both random states, so the steps between it and the interruption are repeated with the same
patients, slices and noise, and so give the same weights: nothing new is released and each step counts once. With other
data the same noise would cancel in the difference of the two, so a checkpoint goes on only with the data, settings and
kind of device that it was made with, compared by fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.registry import load_method

from . import accounting, patient_gradients
from .accounting import (
    FeasibilityRow,
    expected_patients,
    feasibility_table,
    feasibility_text,
    noise_multiplier_for,
    spent,
)
from .augment import AugmentConfig, augment
from .cache import TrainingCache
from .checkpoint import TrainingState, load_state, save_state
from .lanes import is_out_of_memory
from .patient_gradients import (
    PatientPool,
    add_patient,
    backward,
    choose_trainable,
    noisy_step,
    private_generators,
    refuse_batch_statistics,
)
from .privacy_settings import PrivacySettings
from .schedule import averaged, learning_rate
from .settings import TrainProgress, TrainSettings, identity

__all__ = [
    "PrivacySettings",
    "feasibility_of",
    "feasibility_table",
    "feasibility_text",
    "privacy_report",
    "spent",
    "train_private",
]

_LOG = logging.getLogger(__name__)
_NOTE = "differentially private: the loss of the patients is not told"


def train_private(
    method_id: str,
    config: Any,
    cache: TrainingCache,
    settings: TrainSettings,
    privacy: PrivacySettings,
    run_folder: Path,
    *,
    start_from: Mapping[str, torch.Tensor] | None = None,
    resume: bool = False,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainingState:
    """Fine-tune public weights on the patients of ``cache`` within the budget; the result's ``ema`` is the model.

    Of ``settings`` count device, amp, ema, weight_decay, batch_size (slices of one patient computed at a time: bounds
    the memory), steps (where fewer than the privacy's), minutes (ends early, with less spent) and the checkpoint and
    progress intervals. A run that has ended cannot be made longer; resuming it returns it.

    Raises InvalidSettings (settings, batch normalisation, a budget no noise meets) and TrainingFailed (no start
    weights, too few patients, other data or settings on resuming, weights that are not finite, out of memory).
    """
    run = _Run(method_id, config, cache, settings, privacy, Path(run_folder), start_from)
    if resume:
        state = run.restore()
        if _has_ended(state):
            return state
    return run.train(progress)


def feasibility_of(method_id: str, config: Any, privacy: PrivacySettings, patients: int) -> list[FeasibilityRow]:
    """The table for one training: the chosen budget and length among the usual ones, and the weights it would tune."""
    network = load_method(method_id).build(config)
    choose_trainable(network, privacy.trainable)
    return feasibility_table(
        patients,
        patients_per_step=privacy.patients_per_step,
        delta=privacy.delta,
        epsilons=sorted({1.0, 3.0, 8.0, 10.0, float(privacy.epsilon)}),
        steps=sorted({100, 500, 5000, privacy.steps}),
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
    )


def privacy_report(state: TrainingState) -> dict[str, Any]:
    """What the card says of a private run, as plain values; releasable. Raises TrainingFailed for another run."""
    recorded = state.settings.get("privacy")
    if recorded is None:
        raise TrainingFailed("expected the state of a private training, got another one; use train_private")
    report = spent(recorded["noise_multiplier"], recorded["sample_rate"], state.step, recorded["delta"]).to_json()
    return report | {
        "epsilon_target": recorded["epsilon"],
        "unit": "patient",
        "neighbours": "add or remove one patient",
        "sampling": "Poisson",
        "guarantee": not recorded["seeded"],
        "advantage_bound": accounting.advantage_bound(report["mu"]),
        **{name: recorded[name] for name in _REPORTED},
        "opacus": metadata.version("opacus"),
        "code_sha256": _code_hash(),
    }


_REPORTED = (
    "max_grad_norm",
    "slices_per_patient",
    "augmentations",
    "patients_per_step",
    "trainable",
    "tuned_parameters",
    "learning_rate",
)


class _Run:
    """The parts of one private run, set up for its first step."""

    def __init__(self, method_id, config, cache, settings, privacy, folder, start_from) -> None:
        if not start_from:
            raise TrainingFailed(
                "expected public weights to start a private training from, got none: from scratch the noise drowns "
                "what a few hundred patients can teach; give start_from, for example the weights of ddpm_t1"
            )
        self.device = torch.device(settings.device)
        self.pool = PatientPool(cache, self.device)
        self.privacy = _planned(privacy, len(self.pool))
        self.settings = replace(
            settings,
            steps=min(settings.steps, privacy.steps),
            learning_rate=privacy.learning_rate,
            warmup=privacy.warmup,
        )
        self.rate = self.privacy.patients_per_step / len(self.pool)
        self.sigma = noise_multiplier_for(privacy.epsilon, privacy.delta, self.rate, self.settings.steps)
        self.method, self.config, self.folder = load_method(method_id), config, folder
        self.network = self.method.build(config).to(self.device)
        try:
            self.network.load_state_dict(start_from)
        except RuntimeError as error:
            raise TrainingFailed(
                "expected start weights of the same network, got others; choose the configuration of the weights"
            ) from error
        refuse_batch_statistics(self.network)
        self.tuned = choose_trainable(self.network, privacy.trainable)
        self.average = averaged(self.network, settings.ema)
        self.draws, noise = private_generators(privacy.seed, self.device)
        self.optimizer = self._optimizer(noise)
        self.identity = self._identity(method_id, start_from)
        self.data = fingerprint(cache)
        self.step, self.seconds, self.history = 0, 0.0, []
        self.told = -1

    def _optimizer(self, noise: torch.Generator):
        from opacus.optimizers import DPOptimizer

        inner = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.99),
        )
        return DPOptimizer(
            inner,
            noise_multiplier=self.sigma,
            max_grad_norm=self.privacy.max_grad_norm,
            expected_batch_size=self.privacy.patients_per_step,
            loss_reduction="mean",
            generator=noise,
        )

    def _identity(self, method_id: str, start_from: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        privacy = {name: value for name, value in asdict(self.privacy).items() if name != "seed"}
        tuned = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        privacy |= {"noise_multiplier": self.sigma, "sample_rate": self.rate, "tuned_parameters": tuned}
        privacy |= {"seeded": self.privacy.seed is not None, "device": self.device.type}
        privacy |= {"start_sha256": _digest(start_from[name] for name in sorted(start_from))}
        return {**identity(method_id, self.config, self.settings), "privacy": privacy}

    def restore(self) -> TrainingState:
        """Go on where the checkpoint is. Raises TrainingFailed when it is of another run, or of other data."""
        state = load_state(self.folder)
        recorded = {name: value for name, value in state.settings.items() if name != "data"}
        if recorded != self.identity:
            raise TrainingFailed(
                "expected the checkpoint of the same private training, got one with other settings, start weights, "
                "number of patients or kind of device; resume with those of the run or start a new run folder"
            )
        if _has_ended(state):
            return state
        if state.settings.get("data") != self.data:
            raise TrainingFailed(
                "expected the scans the run began with, got others: the same noise on other scans would give them "
                "away; start a new run folder"
            )
        self.network.load_state_dict(state.model)
        self.average.module.load_state_dict(state.ema)
        self.average.n_averaged.fill_(state.averaged)
        self.optimizer.load_state_dict(state.optimizer)
        size = self.draws.get_state().numel()
        self.draws.set_state(state.generator[:size].clone())
        self.optimizer.generator.set_state(state.generator[size:].clone())
        self.step, self.seconds, self.history = state.step, state.seconds, state.history
        return state

    def train(self, progress: Callable[[TrainProgress], None] | None) -> TrainingState:
        """Step until the steps or the minutes are used up; the checkpoint of the end holds no random state."""
        started = saved = told = time.monotonic()
        before = self.seconds
        self.network.train()
        while self.step < self.settings.steps and self.seconds < self.settings.minutes * 60:
            self._step()
            now = time.monotonic()
            self.seconds = before + now - started
            due = self.step % self.settings.checkpoint_every == 0
            if due or now - saved > self.settings.checkpoint_minutes * 60:
                saved = now
                self._note()
                save_state(self.folder, self._state())
            if progress is not None and (due or now - told > self.settings.progress_seconds):
                told = now
                self.told = self.step
                progress(self._progress(due))
        self._note()
        state = self._state(ended=True)
        save_state(self.folder, state, keep_previous=False)
        if progress is not None and self.told != self.step:
            progress(self._progress(True))
        return state

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step, self.step / self.settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        for patient in self.pool.sample(self.rate, self.draws):
            self._add(patient)
        noisy_step(self.optimizer)
        self.step += 1
        if not all(bool(torch.isfinite(p).all()) for p in self.optimizer.params):
            raise TrainingFailed(
                f"expected finite weights, got others after step {self.step}; the last checkpoint is kept, start a new "
                "run with a lower learning rate"
            )
        self.average.update_parameters(self.network)

    def _add(self, patient: int) -> None:
        count, copies = self.privacy.slices_per_patient, self.privacy.augmentations
        slices = self.pool.slices(patient, count, copies, self.draws)
        if len(slices) == 0:
            return
        slices = augment(slices, AugmentConfig(), self.draws)
        try:
            backward(self.method, self.network, self.config, slices, self.draws, self.settings.batch_size, self._cast)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise TrainingFailed(
                    f"expected memory for {min(len(slices), self.settings.batch_size)} slices at a time, got too "
                    "little; the last checkpoint is kept, start a new run with a smaller batch"
                ) from error
            raise
        add_patient(self.optimizer)

    def _cast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp)

    def _note(self) -> None:
        """The accountant's history: (sigma, q, steps so far) and what they amount to."""
        now = spent(self.sigma, self.rate, self.step, self.privacy.delta, prv=False)
        entry = {"step": self.step, "epsilon": now.epsilon, "mu": now.mu}
        entry |= {"noise_multiplier": self.sigma, "sample_rate": self.rate}
        if not self.history or self.history[-1]["step"] != self.step:
            self.history.append(entry)
            _LOG.info("step %d of %d, epsilon %.3f spent", self.step, self.settings.steps, now.epsilon)

    def _state(self, *, ended: bool = False) -> TrainingState:
        states = (self.draws.get_state(), self.optimizer.generator.get_state())
        return TrainingState(
            model=self.network.state_dict(),
            ema=self.average.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            generator=torch.zeros(0, dtype=torch.uint8) if ended else torch.cat(states),
            step=self.step,
            seconds=self.seconds,
            history=list(self.history),
            settings=self.identity | ({} if ended else {"data": self.data}),
            averaged=int(self.average.n_averaged),
            notes=[_NOTE],
        )

    def _progress(self, checkpoint: bool) -> TrainProgress:
        share = min(1.0, max(self.step / self.settings.steps, self.seconds / 60 / self.settings.minutes))
        now = spent(self.sigma, self.rate, self.step, self.privacy.delta, prv=False)
        slices = self.privacy.patients_per_step * self.privacy.slices_per_patient * self.privacy.augmentations
        return TrainProgress(
            step=self.step,
            share=share,
            loss=math.nan,
            validation_loss=None,
            slices_per_second=self.step * slices / max(self.seconds, 1e-9),
            seconds=self.seconds,
            steps=self.settings.steps,
            epoch=int(self.step * self.rate),
            total_epochs=max(1, math.ceil(self.settings.steps * self.rate)),
            seconds_left=self.seconds * (1 - share) / max(share, 1e-9),
            figures={"epsilon": now.epsilon, "mu": now.mu},
            notes=(_NOTE,),
            checkpoint=checkpoint,
        )


def fingerprint(cache: TrainingCache) -> str:
    """SHA-256 of the voxels, the masks and who they belong to. Itself private: it stays in the run folder."""
    digest = _digest((cache.images, cache.brain_masks))
    return hashlib.sha256("\0".join((digest, *cache.patients)).encode()).hexdigest()


def _planned(privacy: PrivacySettings, patients: int) -> PrivacySettings:
    """The settings with the number of patients per step filled in. Raises for too few patients or too large a delta."""
    if patients < 2:
        raise TrainingFailed(f"expected at least 2 patients for a private training, got {patients}; mark more scans")
    if privacy.delta * patients >= 1:
        raise InvalidSettings(
            f"expected delta below one over the number of patients, {1 / patients:.2g}, got {privacy.delta:g}: at that "
            "size giving one patient away whole would count as private"
        )
    expected = privacy.patients_per_step or expected_patients(patients)
    if expected > patients:
        raise InvalidSettings(f"expected at most {patients} patients per step, all there are, got {expected}")
    return replace(privacy, patients_per_step=expected)


def _has_ended(state: TrainingState) -> bool:
    return state.generator.numel() == 0


def _digest(tensors) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _code_hash() -> str:
    """SHA-256 of the three files that make the guarantee."""
    files = (Path(__file__), Path(accounting.__file__), Path(patient_gradients.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
