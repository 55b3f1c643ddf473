import numpy as np
import pytest
from scipy import stats

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.mixture_law import equal_share, fit_law

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0] * 3


def noisy(intercept, slope, seed=0, spread=0.01):
    return intercept + slope * np.array(SHARES) + np.random.default_rng(seed).normal(0, spread, size=len(SHARES))


def test_the_line_is_that_of_scipy():
    values = noisy(0.6, 0.1)
    law, expected = fit_law(SHARES, values), stats.linregress(SHARES, values)
    reach = stats.t.ppf(0.975, len(SHARES) - 2)
    assert law.slope.value == pytest.approx(expected.slope)
    assert law.intercept.value == pytest.approx(expected.intercept)
    assert law.slope.high - law.slope.value == pytest.approx(reach * expected.stderr)
    assert law.intercept.value - law.intercept.low == pytest.approx(reach * expected.intercept_stderr)
    rest = values - expected.intercept - expected.slope * np.array(SHARES)
    assert law.mean_absolute_error == pytest.approx(np.abs(rest).mean())
    assert law.runs == 15


def test_two_lines_meet_where_their_formulas_say():
    men, women = noisy(0.70, 0.06), noisy(0.74, -0.14, seed=1)  # equal at 0.04 / 0.20
    found = equal_share(SHARES, men, women, generator=np.random.default_rng(0))
    assert found.value == pytest.approx(0.2, abs=0.05)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.2
    assert found.met == 1.0


def test_lines_that_meet_outside_of_all_mixtures_have_no_equal_share():
    draw = np.random.default_rng(0)
    assert equal_share(SHARES, noisy(0.9, 0.05), noisy(0.6, 0.1, seed=1), generator=draw) is None
    level = np.full(len(SHARES), 0.5)
    assert equal_share(SHARES, level, level + 0.1, generator=draw) is None


def test_an_uncertain_crossing_says_how_often_it_is_found():
    found = equal_share(
        SHARES, noisy(0.7, 0.01, spread=0.05), noisy(0.7, 0.0, 4, 0.05), generator=np.random.default_rng(0)
    )
    assert found is None or found.met < 1


@pytest.mark.parametrize(
    ("shares", "figures", "message"),
    [
        ([0, 1], [0.5, 0.6], "at least 3"),
        ([0.5, 0.5, 0.5], [0.5, 0.6, 0.7], "two different shares"),
        ([0, 50, 100], [0.5, 0.6, 0.7], r"in \[0, 1\]"),
        ([0, 0.5, 1], [0.5, np.nan, 0.7], "at least 3"),
    ],
)
def test_impossible_runs_are_refused(shares, figures, message):
    with pytest.raises(InvalidSettings, match=message):
        fit_law(shares, figures)
