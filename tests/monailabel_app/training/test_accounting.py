"""Accounting against an independent calculation: the sampled Gaussian's Renyi divergence from its definition."""

import math

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.accounting import (
    advantage_bound,
    expected_patients,
    feasibility_table,
    feasibility_text,
    gaussian_mu,
    noise_multiplier_for,
    spent,
)

DELTA = 1e-5
# (sigma, q, steps), from very private to hardly private.
CASES = [(16.3, 64 / 358, 500), (6.9, 64 / 134, 500), (2.29, 64 / 358, 500), (1.26, 256 / 3000, 500), (1.0, 0.01, 1000)]
# Noise multipliers of the published feasibility study: patients, per step, steps -> at epsilon 1, 3, 10, as printed.
PRINTED = {
    (358, 64, 500): ("16", "6.1", "2.3"),
    (358, 64, 5000): ("51", "19", "6.8"),
    (358, 64, 20000): ("102", "38", "13.6"),
    (3000, 256, 500): ("7.8", "3.0", "1.3"),
    (3000, 256, 5000): ("24", "9.1", "3.3"),
    (3000, 256, 20000): ("49", "18", "6.5"),
    (20000, 256, 500): ("1.4", "0.87", "0.59"),
    (20000, 256, 5000): ("3.8", "1.5", "0.80"),
    (20000, 256, 20000): ("7.4", "2.8", "1.2"),
}


def renyi(sigma: float, q: float, order: int) -> float:
    """Mironov, Talwar and Zhang 2019, section 3.3: the binomial sum at an integer order."""
    k = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + k * math.log(q) + (order - k) * math.log1p(-q) + k * (k - 1) / (2 * sigma**2)
    return float(logsumexp(terms)) / (order - 1)


def renyi_by_integration(sigma: float, q: float, order: float) -> float:
    """The definition: log E_{x ~ N(0, sigma^2)} [(1 - q + q exp((2 x - 1) / (2 sigma^2)))^order] / (order - 1)."""
    x = np.linspace(-40 * sigma, 40 * sigma + 2 * order, 400_001)
    density = -(x**2) / (2 * sigma**2) - 0.5 * math.log(2 * math.pi * sigma**2)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
    return (logsumexp(density + order * ratio) + math.log(x[1] - x[0])) / (order - 1)


def epsilon(sigma: float, q: float, steps: int) -> float:
    """Best conversion over integer orders (Canonne, Kamath and Steinke 2020, proposition 12)."""
    return min(
        steps * renyi(sigma, q, a) + math.log1p(-1 / a) - (math.log(DELTA) + math.log(a)) / (a - 1)
        for a in range(2, 400)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_binomial_sum_is_the_divergence_of_the_definition(case):
    sigma, q, _ = case
    for order in (2, 5, 20):
        assert renyi(sigma, q, order) == pytest.approx(renyi_by_integration(sigma, q, order), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_epsilon_is_that_of_an_independent_calculation(case):
    assert spent(*case, DELTA, prv=False).epsilon == pytest.approx(epsilon(*case), rel=0.01)


@pytest.mark.parametrize("case", CASES)
def test_mu_is_the_closed_formula(case):
    sigma, q, steps = case
    assert spent(*case, DELTA, prv=False).mu == pytest.approx(q * math.sqrt(steps * math.expm1(sigma**-2)))


def test_the_tighter_accountant_says_less_and_the_exact_gaussian_lies_between():
    # Everybody in one step: a plain Gaussian mechanism, whose delta is known in closed form (Balle and Wang 2018).
    now = spent(2.0, 1.0, 1, DELTA)

    def delta(eps, mu=0.5):
        phi = lambda z: 0.5 * math.erfc(-z / math.sqrt(2))  # noqa: E731
        return phi(-eps / mu + mu / 2) - math.exp(eps) * phi(-eps / mu - mu / 2)

    assert delta(now.epsilon_prv) <= DELTA * 1.001
    assert delta(now.epsilon_prv * 0.95) > DELTA
    assert now.epsilon_prv < now.epsilon


def test_noise_for_a_budget_spends_that_budget():
    sigma = noise_multiplier_for(8, DELTA, 0.4, 100)
    assert 7.99 < spent(sigma, 0.4, 100, DELTA, prv=False).epsilon <= 8
    assert spent(0.98 * sigma, 0.4, 100, DELTA, prv=False).epsilon > 8


def test_nothing_is_spent_before_the_first_step_and_more_with_each():
    now = [spent(3.0, 0.4, steps, DELTA, prv=False) for steps in (0, 1, 10, 100)]
    assert (now[0].epsilon, now[0].mu) == (0, 0)
    assert [s.epsilon for s in now] == sorted({s.epsilon for s in now})


@pytest.mark.parametrize(("study", "printed"), PRINTED.items())
def test_feasibility_agrees_with_the_published_table_to_its_digits(study, printed):
    patients, per_step, steps = study
    rows = feasibility_table(patients, patients_per_step=per_step, epsilons=(1, 3, 10), steps=(steps,))
    for row, text in zip(rows, printed, strict=True):
        decimals = len(text.partition(".")[2])
        assert f"{row.noise_multiplier:.{decimals}f}" == text


def test_the_table_has_a_row_per_budget_and_length_and_says_what_is_not_sensible():
    rows = feasibility_table(40, epsilons=(1, 10), steps=(10, 600), parameters=1_000_000)
    assert [(row.epsilon, row.steps) for row in rows] == [(1, 10), (1, 600), (10, 10), (10, 600)]
    first = rows[0]
    assert first.step_signal == pytest.approx(20 / (first.noise_multiplier * 1000))
    assert first.run_signal == pytest.approx(first.step_signal * math.sqrt(10))
    assert "not sensible" in first.note
    assert "too long" in rows[1].note
    text = feasibility_text(rows)
    assert len(text.splitlines()) == 5
    assert f"{first.noise_multiplier:.3g}" in text


def test_without_the_number_of_weights_no_signal_is_claimed():
    (row,) = feasibility_table(40, epsilons=(8,), steps=(10,))
    assert row.run_signal is None
    assert feasibility_text([row]).splitlines()[1].split()[-1] == "-"


def test_half_of_few_patients_and_sixty_four_of_many_are_expected_in_a_step():
    assert [expected_patients(n) for n in (2, 14, 127, 128, 5000)] == [1, 7, 63, 64, 64]


def test_a_membership_test_can_gain_no_more_than_mu_allows():
    assert advantage_bound(0) == 0
    assert advantage_bound(1) == pytest.approx(0.3829, abs=1e-4)
    assert math.isinf(gaussian_mu(1e-3, 0.5, 1))
    assert advantage_bound(math.inf) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spent(0, 0.1, 1, DELTA), "noise multiplier above 0"),
        (lambda: spent(1, 1.1, 1, DELTA), "sampling rate"),
        (lambda: spent(1, 0.1, -1, DELTA), "sampling rate"),
        (lambda: spent(1, 0.1, 1, 1.0), "delta"),
        (lambda: noise_multiplier_for(0, DELTA, 0.1, 1), "epsilon above 0"),
        (lambda: noise_multiplier_for(1e-9, 1e-12, 1.0, 100_000), "noise can meet"),
        (lambda: feasibility_table(3, patients_per_step=4), "from 1 to 3 patients"),
    ],
)
def test_values_outside_their_range_are_refused(call, message):
    with pytest.raises(InvalidSettings, match=message):
        call()
