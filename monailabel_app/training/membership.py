"""Membership inference by the loss: can the patients a model was trained on be told from others?

The loss-threshold attack of Yeom et al. 2018 (section 3.1) with the patient as the unit: a patient counts as a member
when the mean training loss over the patient's slices is low. Everybody gets the same time steps and the same noise, so
losses differ by the patient only. It is a weak attack, and a lower bound on what a stronger one finds: an AUROC of 0.5
does not prove privacy, one well above it disproves it. Members and others must come from the same population, or the
attack measures that difference.

The figures are themselves statistics of the training patients, outside any privacy budget: for the site, not for a
released card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.imagewise import scan_auroc
from monailabel_app.metrics.intervals import bootstrap_interval
from monailabel_app.registry import load_method

from .cache import TrainingCache
from .slices import SlicePool

_PIECE = 16
LOWEST_FPR = 0.01


@dataclass(frozen=True)
class MembershipFigures:
    """auroc: chance that a member's loss is below another patient's; 0.5 is guessing. Intervals: 95 %, over patients.

    advantage: largest TPR - FPR over all thresholds, which is above 0 by chance too: ``p_value`` is how often the same
    patients with shuffled roles give at least this AUROC. tpr: share of members found at a false-positive rate of at
    most ``fpr``, which is 1 % or, with fewer than 100 others, none of them.
    """

    auroc: float
    auroc_interval: tuple[float, float]
    advantage: float
    advantage_interval: tuple[float, float]
    p_value: float
    tpr: float
    fpr: float
    members: int
    others: int
    member_loss: float
    other_loss: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def membership_inference(
    method_id: str,
    config: Any,
    network: nn.Module,
    members: TrainingCache,
    others: TrainingCache,
    *,
    slices_per_patient: int = 16,
    draws: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resamples: int = 2000,
) -> MembershipFigures:
    """Attack a network with the patients it was trained on and held-out ones.

    draws: noise draws per slice. Raises EvaluationFailed for a group without patients, or a patient in both.
    """
    shared = set(members.patients) & set(others.patients)
    if shared:
        raise EvaluationFailed(
            f"expected patients that are either members or not, got {len(shared)} in both groups; "
            "hold out whole patients"
        )
    options = {"slices_per_patient": slices_per_patient, "draws": draws, "seed": seed, "device": device}
    return loss_attack(
        patient_losses(method_id, config, network, members, **options),
        patient_losses(method_id, config, network, others, **options),
        generator=np.random.default_rng(seed),
        resamples=resamples,
    )


@torch.inference_mode()
def patient_losses(
    method_id: str,
    config: Any,
    network: nn.Module,
    cache: TrainingCache,
    *,
    slices_per_patient: int = 16,
    draws: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """(patients,) mean training loss of each, in the order of their sorted names; those without brain are left out.

    The slices lie evenly over each patient's brain. The network is moved to ``device`` and left in the mode it was in.
    """
    method, device = load_method(method_id), torch.device(device)
    pool = SlicePool(cache, device)
    patients = np.array(cache.patients)[pool.index[:, 0].numpy()]
    training = network.training
    network.to(device).eval()
    losses = []
    for patient in sorted(set(patients)):
        rows = np.flatnonzero(patients == patient)
        chosen = rows[np.linspace(0, len(rows) - 1, slices_per_patient).round().astype(int)]
        slices = pool.take(torch.from_numpy(chosen))
        generator = torch.Generator().manual_seed(seed)
        parts = [part for _ in range(draws) for part in slices.split(_PIECE)]
        sums = [float(method.training_loss(network, config, part, generator)) * len(part) for part in parts]
        losses.append(sum(sums) / (draws * len(slices)))
    network.train(training)
    return np.array(losses)


def loss_attack(
    member_losses: Sequence[float] | np.ndarray,
    other_losses: Sequence[float] | np.ndarray,
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
) -> MembershipFigures:
    """The attack's figures from one loss per patient. Raises EvaluationFailed for an empty or non-finite group."""
    members, others = (np.asarray(losses, dtype=np.float64).ravel() for losses in (member_losses, other_losses))
    if not len(members) or not len(others) or not np.isfinite(np.concatenate([members, others])).all():
        raise EvaluationFailed(
            f"expected finite losses of at least one member and one other patient, got {len(members)} and {len(others)}"
        )

    def bootstrap(statistic):
        found = bootstrap_interval(statistic, members, others, generator=generator, resamples=resamples)
        return found.estimate, (found.low, found.high)

    auroc, auroc_interval = bootstrap(_auroc)
    gain, gain_interval = bootstrap(advantage)
    allowed = int(LOWEST_FPR * len(others))
    limit = np.sort(others)[allowed]  # below it lie ``allowed`` others
    return MembershipFigures(
        auroc=auroc,
        auroc_interval=auroc_interval,
        advantage=gain,
        advantage_interval=gain_interval,
        p_value=_p_value(members, others, auroc, generator, resamples),
        tpr=float((members < limit).mean()),
        fpr=float((others < limit).mean()),
        members=len(members),
        others=len(others),
        member_loss=float(members.mean()),
        other_loss=float(others.mean()),
    )


def advantage(member_losses: np.ndarray, other_losses: np.ndarray) -> float:
    """Largest TPR - FPR of 'a member is whoever has a loss of at most t', over all t; at least 0 (nobody)."""
    members, others = np.sort(member_losses), np.sort(other_losses)
    thresholds = np.concatenate([members, others])
    tpr = np.searchsorted(members, thresholds, side="right") / len(members)
    fpr = np.searchsorted(others, thresholds, side="right") / len(others)
    return float(max(0.0, (tpr - fpr).max()))


def _auroc(member_losses: np.ndarray, other_losses: np.ndarray) -> float:
    return scan_auroc(-np.asarray(other_losses), -np.asarray(member_losses))


def _p_value(members, others, auroc: float, generator: np.random.Generator, shuffles: int) -> float:
    """One-sided: the share of shuffled roles with an AUROC at least as high."""
    everybody, count = np.concatenate([members, others]), 0
    for _ in range(shuffles):
        shuffled = generator.permutation(everybody)
        count += _auroc(shuffled[: len(members)], shuffled[len(members) :]) >= auroc - 1e-12
    return float((1 + count) / (1 + shuffles))
