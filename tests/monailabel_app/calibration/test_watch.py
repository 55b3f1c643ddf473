"""The watch keeps its false-alarm bound however often one looks, and tells changes of the size that matters."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.calibration.watch import LEAST_SCANS, capital, compare, conformal_ranks, holm, share_interval, watch


def test_ranks_of_exchangeable_values_are_uniform_also_with_many_ties():
    generator = np.random.default_rng(1)
    for values in (generator.gamma(2, size=2000), generator.random(2000) < 0.05):
        assert stats.kstest(conformal_ranks(values, generator), "uniform").pvalue > 0.01


def test_false_alarms_stay_below_the_bound_over_the_whole_sequence():
    generator = np.random.default_rng(2)
    alarms = sum(watch(generator.lognormal(size=300), alarm=20)["state"] == "changed" for _ in range(300))
    assert alarms / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_the_capital_wins_nothing_on_average():
    generator = np.random.default_rng(3)
    ends = [capital(generator.random(30))[-1] for _ in range(20000)]
    assert np.mean(ends) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_a_change_of_scanner_is_told_with_its_direction_and_place(shift):
    generator = np.random.default_rng(4)
    values = np.concatenate([generator.normal(size=80), generator.normal(shift, size=60)])
    told = watch(values, alarm=400)
    assert told["state"] == "changed"
    assert 80 < told["at"] <= 130
    assert abs(told["since"] - 80) <= 20
    assert told["higher"] is (shift > 0)


def test_a_growing_share_of_flagged_scans_is_told():
    generator = np.random.default_rng(5)
    flagged = np.concatenate([generator.random(100) < 0.03, generator.random(80) < 0.5]).astype(float)
    assert watch(flagged, alarm=400)["state"] == "changed"


def test_few_scans_say_so():
    assert watch([1.0] * (LEAST_SCANS - 1), alarm=20)["state"] == "few"
    assert compare([1.0] * 5, [2.0] * 50, yes_no=False) is None


def test_shares_and_values_are_compared_by_their_own_tests():
    assert compare([0] * 50, [0] * 25 + [1] * 25, yes_no=True)["p_value"] < 1e-6
    assert compare(list(range(50)), list(range(50)), yes_no=False)["p_value"] == 1


def test_holm_corrects_step_by_step():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.9}) == {"a": 0.03, "b": 0.04, "c": 0.9}


def test_an_exact_interval_holds_its_share():
    low, high = share_interval(1, 20)
    assert low < 0.05 < high
    assert share_interval(0, 20)[0] == 0
