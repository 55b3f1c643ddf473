"""Combining p-values: what each rule does to agreeing and to lone votes, and why the result is calibrated anew."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods.ensemble import Config, build, combine

MEMBERS, VOXELS = 4, 200_000


def _rarities(correlation: float, shift=0.0, seed: int = 0) -> np.ndarray:
    """-log10 p of one-sided z-scores that share a part of their noise: (members, voxels)."""
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=VOXELS), generator.normal(size=(MEMBERS, VOXELS))
    z = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own + np.reshape(shift, (-1, 1))
    return -np.log10(stats.norm.sf(z))


def _false_rate(statistic: np.ndarray, level: float = 0.01) -> float:
    """How often Fisher's chi-squared test at a nominal level rejects."""
    return float((stats.chi2.sf(2 * np.log(10) * MEMBERS * statistic, 2 * MEMBERS) < level).mean())


def test_fishers_rule_is_exact_for_independent_maps_only():
    assert _false_rate(combine(_rarities(0.0))["fisher"]) == pytest.approx(0.01, abs=0.002)
    # The maps of one scan share its noise: the textbook p-value would mark three times too much or more.
    assert _false_rate(combine(_rarities(0.7))["fisher"]) > 0.03


def test_the_harmonic_mean_bears_dependence():
    for correlation in (0.0, 0.7, 0.95):
        share = 10.0 ** -combine(_rarities(correlation))["harmonic"]
        assert (share < 0.001).mean() < 0.002


@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.parametrize("rule", ["fisher", "harmonic", "strongest"])
def test_thresholds_from_healthy_maps_hold_whatever_the_dependence(rule, correlation):
    calibrating, held_out = (combine(_rarities(correlation, seed=seed))[rule] for seed in (1, 2))
    threshold = np.quantile(calibrating, 0.99)
    assert (held_out > threshold).mean() == pytest.approx(0.01, abs=0.0015)


def test_many_weak_votes_favour_fisher_and_a_lone_strong_one_the_harmonic_mean():
    healthy, everyone = combine(_rarities(0.0, seed=1)), combine(_rarities(0.0, shift=1.0, seed=2))
    alone = combine(_rarities(0.0, shift=[5.0, 0, 0, 0], seed=3))

    def power(lesioned, rule):
        return (lesioned[rule] > np.quantile(healthy[rule], 0.999)).mean()

    assert power(everyone, "fisher") > 1.5 * power(everyone, "harmonic")
    assert power(alone, "harmonic") > 1.05 * power(alone, "fisher")
    assert power(alone, "strongest") > 1.05 * power(alone, "fisher")


def test_one_member_stays_what_it_is_and_extremes_do_not_overflow():
    rare = np.array([0.0, 1.0, 900.0])
    for values in combine([rare]).values():
        np.testing.assert_allclose(values, rare, rtol=1e-6)
    made = combine([rare, np.zeros(3)])
    assert np.isfinite(made["harmonic"]).all()
    assert made["harmonic"][2] == pytest.approx(900 - np.log10(2), rel=1e-6)
    assert made["fisher"][2] == pytest.approx(450)


def test_hashes_and_scores_belong_to_members():
    with pytest.raises(InvalidSettings, match="2 members, got 1 hashes"):
        build(Config(("a", "b"), ("x",), ("signed", "signed")))
    assert int(build(Config(("a",), ("x",), ("signed",))).count) == 1
    with pytest.raises(InvalidSettings, match="at least one member"):
        combine([])
