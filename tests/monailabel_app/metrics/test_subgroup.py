from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.subgroup import (
    FPR_AT_TPR95,
    SAUROC,
    GroupFigures,
    HealthyScans,
    Positives,
    age_band,
    detectable_difference,
    equality_test,
    holm,
    intersect,
    subgroup_auroc,
    threshold_at_tpr,
)


def generator(seed=0):
    return np.random.default_rng(seed)


def area_by_thresholds(positives, negatives):
    """The definition: true positives of all patients and false ones of the group at every threshold, trapezoids."""
    cuts = [np.inf, *sorted(set(positives) | set(negatives), reverse=True)]
    tpr = [np.mean(np.asarray(positives) >= cut) for cut in cuts]
    fpr = [np.mean(np.asarray(negatives) >= cut) for cut in cuts]
    return sum((fpr[i] - fpr[i - 1]) * (tpr[i] + tpr[i - 1]) / 2 for i in range(1, len(cuts)))


@pytest.mark.parametrize("seed", range(5))
def test_the_subgroup_auroc_is_the_area_under_its_own_roc_curve_with_ties(seed):
    draw = generator(seed)
    positives, negatives = draw.integers(2, 9, size=13).tolist(), draw.integers(0, 7, size=8).tolist()
    assert subgroup_auroc(positives, negatives) == pytest.approx(area_by_thresholds(positives, negatives))
    u = stats.mannwhitneyu(positives, negatives).statistic
    assert subgroup_auroc(positives, negatives) == pytest.approx(u / (13 * 8))


def test_it_shows_a_shift_of_a_whole_group_that_the_auroc_within_the_group_hides():
    healthy, ill = np.array([1.0, 2.0, 3.0]), np.array([2.5, 3.5, 4.5])
    shifted_healthy, shifted_ill = healthy + 1, ill + 1
    assert subgroup_auroc(ill, healthy) == subgroup_auroc(shifted_ill, shifted_healthy)  # each within itself
    everybody = np.concatenate([ill, shifted_ill])
    assert subgroup_auroc(everybody, shifted_healthy) < subgroup_auroc(everybody, healthy)


def test_the_threshold_finds_the_wanted_share_of_the_positives_and_follows_the_weights():
    scores = np.arange(1.0, 21.0)  # 19 of 20 lie at 2 or above
    ones = np.ones(20)
    low_gone = np.where(scores <= 10, 0.0, 1.0)  # 10 left: all of them needed for 95 %
    found = threshold_at_tpr(scores, np.stack([ones, low_gone, np.zeros(20)]), 0.95)
    assert found[:2].tolist() == [2.0, 11.0]
    assert np.isnan(found[2])


def small_figures(**options):
    healthy = HealthyScans(["a", "b", "c", "d"], {"scan_score": np.array([1.0, 3.0, 2.0, 5.0]), "ml": np.arange(4.0)})
    return GroupFigures(healthy, Positives(["p", "q"], np.array([3.0, 6.0])), **options)


def test_figures_of_a_worked_example():
    figures = small_figures()
    first, second = np.array([True, True, False, False]), np.array([False, False, True, True])
    assert figures.names == ["scan_score", "ml", SAUROC, FPR_AT_TPR95]
    assert figures.threshold == 3.0
    assert figures.of("ml", first).value == 0.5
    assert figures.of(SAUROC, first).value == pytest.approx((1 + 0.5 + 1 + 1) / 4)  # 3 > 1, 3 = 3, 6 > 1, 6 > 3
    assert figures.of(FPR_AT_TPR95, first).value == 0.5
    assert figures.difference("ml", second, first).value == 2.0


def test_a_second_scan_of_everybody_makes_nothing_more_certain():
    values, names = generator(2).normal(size=12), list("abcdefghijkl")
    once = GroupFigures(HealthyScans(names, {"ml": values}), resamples=500)
    twice = GroupFigures(HealthyScans(names * 2, {"ml": np.tile(values, 2)}), resamples=500)
    assert twice.people(np.ones(24, bool)) == 12
    assert twice.of("ml", np.ones(24, bool)) == pytest.approx(once.of("ml", np.ones(12, bool)))


def test_limits_are_those_of_students_t_for_the_mean_of_a_small_group():
    values = generator().normal(size=10)
    found = GroupFigures(HealthyScans(list(range(10)), {"x": values}), resamples=20_000).of("x", np.ones(10, bool))
    expected = stats.t.interval(0.95, 9, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.08)
    plain = np.quantile(values[generator(1).integers(10, size=(20_000, 10))].mean(axis=1), [0.025, 0.975])
    assert (found.high - found.low) / (plain[1] - plain[0]) == pytest.approx(1.22, abs=0.06)


def test_limits_of_the_subgroup_auroc_agree_with_resampling_patient_by_patient():
    draw = generator(3)
    healthy, ill = draw.normal(size=40), draw.normal(1, size=30)
    scans = HealthyScans([f"h{i}" for i in range(40)], {"scan_score": healthy})
    found = GroupFigures(scans, Positives([f"p{i}" for i in range(30)], ill), resamples=2000)
    members = np.arange(40) < 25
    areas = []
    for _ in range(2000):
        chosen = draw.integers(40, size=40)
        chosen = chosen[chosen < 25]
        areas.append((ill[draw.integers(30, size=30)][:, None] > healthy[chosen]).mean())
    tail = stats.norm.cdf(np.sqrt(25 / 24) * stats.t.ppf(0.025, 24))
    estimate = found.of(SAUROC, members)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(areas, [tail, 1 - tail]), abs=0.03)


def test_a_single_patient_has_no_limits():
    found = small_figures().of("ml", np.array([True, False, False, False]))
    assert found.value == 0.0
    assert np.isnan([found.low, found.high]).all()


def test_figures_refuse_what_is_missing():
    with pytest.raises(InvalidSettings, match="none missing"):
        GroupFigures(HealthyScans(["a", "b"], {"ml": np.array([1.0, np.nan])}))
    with pytest.raises(InvalidSettings, match="one number per healthy scan"):
        GroupFigures(HealthyScans([], {}))
    with pytest.raises(InvalidSettings, match="scan score"):
        GroupFigures(HealthyScans(["a"], {"ml": np.ones(1)}), Positives(["p"], np.ones(1)))


def test_two_groups_are_tested_as_by_scipy():
    draw = generator(4)
    first, second = draw.exponential(size=5), draw.exponential(size=4) + 0.8
    found = equality_test([*first, *second], ["a"] * 5 + ["b"] * 4, generator=draw)
    expected = stats.permutation_test(
        (first, second), lambda x, y: abs(np.mean(x) - np.mean(y)), alternative="greater", n_resamples=np.inf
    )
    assert found.exact
    assert found.assignments == 126
    assert found.p_value == pytest.approx(expected.pvalue)


def test_three_groups_are_tested_at_once_as_by_every_order():
    values, groups = np.array([1.0, 2.0, 7.0, 8.0, 4.0, 3.5]), list("aabbcc")

    def f_statistic(order):
        split = {g: [order[i] for i in range(6) if groups[i] == g] for g in "abc"}
        return stats.f_oneway(*split.values()).statistic

    orders = np.array([f_statistic(order) for order in permutations(values)])
    found = equality_test(values, groups, generator=generator())
    assert found.exact
    assert found.assignments == 90
    assert found.p_value == pytest.approx((orders >= f_statistic(values) * (1 - 1e-9)).mean())


def test_drawn_assignments_come_near_the_exact_p_value_and_are_never_zero():
    draw = generator(5)
    values, groups = np.append(draw.normal(size=6), draw.normal(1.2, size=6)), ["a"] * 6 + ["b"] * 6
    exact = equality_test(values, groups, generator=draw)
    drawn = equality_test(values, groups, generator=draw, permutations=900)
    assert exact.exact
    assert not drawn.exact
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.05)
    far = equality_test(np.arange(40.0), ["a"] * 20 + ["b"] * 20, generator=draw, permutations=99)
    assert far.p_value == pytest.approx(1 / 100)


def test_without_a_difference_it_rejects_no_more_often_than_it_says():
    draw = generator(6)
    p = [
        equality_test(draw.exponential(size=12), list("aaaabbbbcccc"), generator=draw, permutations=199).p_value
        for _ in range(200)
    ]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.07)


def test_patients_are_exchanged_whole_and_who_is_in_two_groups_is_left_out():
    values, groups = [1.0, 3.0, 5.0, 6.0, 7.0], ["a", "a", "a", "b", "b"]
    once = equality_test([2.0, 5.0, 6.0, 7.0], ["a", "a", "b", "b"], generator=generator())
    found = equality_test(values, groups, patients=["p", "p", "q", "r", "s"], generator=generator())
    assert found == once
    crossed = equality_test(
        [*values, 0.0, 9.0], [*groups, "a", "b"], patients=["p", "p", "q", "r", "s", "x", "x"], generator=generator()
    )
    assert crossed == once._replace(left_out=1)


def test_the_test_refuses_a_single_group_and_missing_numbers():
    with pytest.raises(InvalidSettings, match="two groups"):
        equality_test([1.0, 2.0], ["a", "a"], generator=generator())
    with pytest.raises(InvalidSettings, match="a number, a group and a patient"):
        equality_test([1.0, np.nan], ["a", "b"], generator=generator())


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_detectable_difference_is_found_four_times_in_five():
    draw = generator(7)
    first, second = draw.normal(size=14), draw.normal(size=9)
    first, second = stats.zscore(first, ddof=1), stats.zscore(second, ddof=1)
    difference = detectable_difference(first, second)
    p = stats.ttest_ind(draw.normal(size=(4000, 14)), draw.normal(difference, size=(4000, 9)), axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(first, second, level=0.05 / 3) > difference
    assert np.isnan(detectable_difference([1.0], second))


@pytest.mark.parametrize(
    ("age", "band"),
    [(39.99, "<40"), (40, "40-59"), (59.9, "40-59"), (60, ">=60"), (None, "unknown"), (float("nan"), "unknown")],
)
def test_age_bands_begin_at_their_limits(age, band):
    assert age_band(age) == band


def test_age_bands_of_other_limits():
    assert [age_band(a, (18, 30.5, 65)) for a in (17, 18, 31, 70)] == ["<18", "18 to <30.5", "30.5-64", ">=65"]
    with pytest.raises(InvalidSettings, match="rising"):
        age_band(50, (60, 40))
    with pytest.raises(InvalidSettings, match="between 0 and 130"):
        age_band(-3)


def test_an_intersection_is_unknown_where_one_part_is():
    assert intersect(["F", "M", "unknown"], ["<40", "unknown", "<40"]) == ["F, <40", "unknown", "unknown"]
