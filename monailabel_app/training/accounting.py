"""Privacy accounting of patient-level DP-SGD: what was spent, how much noise a budget needs, what is worth trying.

The mechanism: in each of ``steps`` steps every patient takes part with probability q (Poisson sampling), adds a vector
of norm at most C, and the sum is released with Gaussian noise of standard deviation sigma * C. Neighbouring data sets
differ by one patient added or removed. To protect against one patient being *replaced* takes twice the noise.

Renyi accounting (Mironov et al. 2019, "Renyi differential privacy of the sampled Gaussian mechanism", with the
conversion of Canonne et al. 2020) is a bound and is what budgets are set with. Only integer orders are used: there
the moment is a finite sum. It costs up to 1 % more noise in the region where a fine-tuning is sensible, and 4 % where
sigma is below 1. The PRV accountant (Gopi et al. 2021) is tighter and given beside it where it can be computed. The
Gaussian-DP mu (Dong et al. 2022, section 5, central limit theorem) is an approximation for reporting, not a bound.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monailabel_app.errors import InvalidSettings

ORDERS = (*range(2, 65), *range(68, 129, 4), *range(144, 257, 16), 512)
_TOLERANCE = 1e-3  # epsilon left unused by the search for sigma


@dataclass(frozen=True)
class Spent:
    """What a run has spent. epsilon: bound at delta by ``accountant``. epsilon_prv: tighter, None where it fails.

    mu: of Gaussian differential privacy, by the central limit theorem. noise_multiplier: sigma. sample_rate: q.
    """

    epsilon: float
    delta: float
    mu: float
    epsilon_prv: float | None
    noise_multiplier: float
    sample_rate: float
    steps: int
    accountant: str = "Renyi (RDP), integer orders"

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a card."""
        return asdict(self)


def spent(noise_multiplier: float, sample_rate: float, steps: int, delta: float, *, prv: bool = True) -> Spent:
    """The budget spent by ``steps`` steps. Raises InvalidSettings for values outside their range."""
    _check(sample_rate, steps, delta)
    if not noise_multiplier > 0:
        raise InvalidSettings(
            f"expected a noise multiplier above 0, got {noise_multiplier}: without noise all is spent"
        )
    if steps == 0:
        return Spent(0.0, delta, 0.0, 0.0, noise_multiplier, sample_rate, 0)
    return Spent(
        epsilon=_epsilon(noise_multiplier, sample_rate, steps, delta),
        delta=delta,
        mu=gaussian_mu(noise_multiplier, sample_rate, steps),
        epsilon_prv=_epsilon_prv(noise_multiplier, sample_rate, steps, delta) if prv else None,
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        steps=steps,
    )


def gaussian_mu(noise_multiplier: float, sample_rate: float, steps: int) -> float:
    """mu of the central limit theorem: q * sqrt(steps * (exp(sigma^-2) - 1)); infinite for sigma near 0."""
    from opacus.accountants.analysis.gdp import compute_mu_poisson

    if noise_multiplier**-2 > 700:
        return math.inf
    return float(compute_mu_poisson(steps=steps, noise_multiplier=noise_multiplier, sample_rate=sample_rate))


def noise_multiplier_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest sigma (to 0.001 in epsilon) with which ``steps`` steps stay within the budget.

    Raises InvalidSettings for a budget that no noise meets.
    """
    from opacus.accountants.utils import get_noise_multiplier

    _check(sample_rate, steps, delta)
    if steps < 1 or not 0 < epsilon < math.inf:
        raise InvalidSettings(f"expected at least 1 step and a finite epsilon above 0, got {steps} and {epsilon}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the best order is the first or the last
            sigma = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=min(_TOLERANCE, epsilon / 100),
                alphas=list(ORDERS),
            )
        return float(sigma)
    except ValueError as error:
        raise InvalidSettings(
            f"expected a budget that noise can meet, got epsilon={epsilon:g} at delta={delta:g} for {steps} steps; "
            "raise epsilon or take fewer steps"
        ) from error


def advantage_bound(mu: float) -> float:
    """The most that TPR - FPR of any membership test can be under mu-Gaussian DP: 2 Phi(mu / 2) - 1."""
    return math.erf(mu / (2 * math.sqrt(2)))


@dataclass(frozen=True)
class FeasibilityRow:
    """One budget and length of training.

    step_signal, run_signal: the most that the patients' mean gradient can be over the noise's length, in one step and
    summed over the run; every patient would have to pull the same way. None where the number of tuned weights is
    not known.
    """

    epsilon: float
    steps: int
    noise_multiplier: float
    mu: float
    step_signal: float | None
    run_signal: float | None
    note: str


def feasibility_table(
    patients: int,
    *,
    patients_per_step: int | None = None,
    delta: float = 1e-5,
    epsilons: Sequence[float] = (1, 3, 8, 10),
    steps: Sequence[int] = (100, 500, 5000),
    parameters: int | None = None,
) -> list[FeasibilityRow]:
    """What each budget costs with so many patients: to be shown before a private training starts.

    parameters: how many weights are tuned; the noise has that many dimensions. Depends on no image.
    """
    expected = patients_per_step or expected_patients(patients)
    if not 1 <= expected <= patients:
        raise InvalidSettings(f"expected from 1 to {patients} patients per step, got {expected}")
    return [_row(patients, expected, delta, e, n, parameters) for e in epsilons for n in steps]


def expected_patients(patients: int) -> int:
    """Patients per step where none is chosen: 64, or half of them when there are fewer than 128."""
    return max(1, min(64, patients // 2))


def feasibility_text(rows: Sequence[FeasibilityRow]) -> str:
    """The table for a terminal or a log."""
    lines = [f"{'epsilon':>8}{'steps':>7}{'sigma':>8}{'mu':>7}{'signal/noise':>14}  remark"]
    for row in rows:
        signal = "-" if row.run_signal is None else f"{row.run_signal:.2f}"
        lines.append(
            f"{row.epsilon:>8g}{row.steps:>7}{row.noise_multiplier:>8.3g}{row.mu:>7.2f}{signal:>14}  {row.note}"
        )
    return "\n".join(lines)


def _row(patients: int, expected: int, delta: float, epsilon: float, steps: int, parameters: int | None):
    rate = expected / patients
    sigma = noise_multiplier_for(epsilon, delta, rate, steps)
    step_signal = run_signal = None
    note = "too long for so few patients" if steps > 500 and patients < 1000 else ""
    if parameters:
        step_signal = expected / (sigma * math.sqrt(parameters))
        run_signal = step_signal * math.sqrt(steps)
        note = "; ".join(part for part in (_signal_note(run_signal), note) if part)
    mu = gaussian_mu(sigma, rate, steps)
    return FeasibilityRow(float(epsilon), int(steps), sigma, mu, step_signal, run_signal, note)


def _signal_note(run_signal: float) -> str:
    if run_signal >= 1:
        return "the scans can move the weights further than the noise does"
    if run_signal >= 0.2:
        return "the noise moves the weights further than the scans do"
    return "not sensible: the noise drowns the scans"


def _epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the best order is the first or the last
        return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


def _epsilon_prv(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float | None:
    """None where the discretisation does not fit: extreme sigma, or a loss that is not a number."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # log of 1 - q where everybody takes part
            value = float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, ArithmeticError, MemoryError):
        return None
    return value if math.isfinite(value) else None


def _check(sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1 or steps < 0 or not 0 < delta < 1:
        raise InvalidSettings(
            "expected a sampling rate in (0, 1], no negative number of steps and delta in (0, 1), "
            f"got {sample_rate}, {steps} and {delta}"
        )
