"""Paired tests: exact for few patients, in agreement with scipy, and right as often as they say."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.imagewise import scan_auroc
from monailabel_app.metrics.permutation import auroc_permutation_test, delong_test, paired_permutation_test


def seeded(seed=0):
    return np.random.default_rng(seed)


def two_scores(rng, *, ill=30, well=30, first=0.8, second=0.8, shared=0.7):
    """Correlated scores of the same scans, ``first`` and ``second`` deviations above healthy where diseased."""
    diseased = np.arange(ill + well) < ill
    common = rng.normal(size=ill + well)
    noise = rng.normal(size=(2, ill + well))
    values = shared * common + np.sqrt(1 - shared**2) * noise + np.array([[first], [second]]) * diseased
    return diseased, np.exp(values[0]), values[1] * 50  # no common scale


def test_all_sign_patterns_of_few_pairs_are_counted():
    """Differences 1, 2, 3: only +++ and --- reach |6|, 2 of 8 patterns; one of them is positive."""
    assert paired_permutation_test([2, 4, 6], [1, 2, 3], generator=seeded()) == 0.25
    assert paired_permutation_test([2, 4, 6], [1, 2, 3], generator=seeded(), alternative="greater") == 0.125
    assert paired_permutation_test([2, 4, 6], [1, 2, 3], generator=seeded(), alternative="less") == 1
    # 1, 1, -1: |sum| >= 1 for every pattern.
    assert paired_permutation_test([1, 1, 0], [0, 0, 1], generator=seeded()) == 1


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize(("count", "tolerance"), [(9, 1e-12), (30, 0.015)])
def test_it_agrees_with_scipy(alternative, count, tolerance):
    rng = seeded(5)
    first, second = rng.normal(0.4, 1, count), rng.normal(0, 1, count)
    expected = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        alternative=alternative,
        rng=seeded(9),
    ).pvalue
    found = paired_permutation_test(first, second, generator=seeded(), permutations=20_000, alternative=alternative)
    assert found == pytest.approx(expected, abs=tolerance)


def test_equal_results_have_p_one_and_no_p_is_zero():
    assert paired_permutation_test([0.3] * 40, [0.3] * 40, generator=seeded()) == 1
    p = paired_permutation_test(np.arange(40.0) + 1, np.zeros(40), generator=seeded(), permutations=999)
    assert p == pytest.approx(1 / 1000)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_no_difference_is_called_one_as_often_as_the_level_says(alternative):
    """400 comparisons of equal methods: rejected at 5 % within three standard errors of 5 %, and never far above."""
    rng = seeded(1)
    p = np.array(
        [
            paired_permutation_test(
                *rng.gamma(1.0, size=(2, 15)), generator=rng, permutations=199, alternative=alternative
            )
            for _ in range(400)
        ]
    )
    assert 0.05 - 0.033 < (p <= 0.05).mean() < 0.05 + 0.033
    assert abs(p.mean() - 0.5) < 0.06


def test_scans_of_one_patient_count_as_one():
    """Forty scans of two patients: the least p-value is that of two, not of forty."""
    first, second = np.ones(40), np.zeros(40)
    patients = ["a"] * 30 + ["b"] * 10
    assert paired_permutation_test(first, second, generator=seeded(), patients=patients) == 0.5
    assert paired_permutation_test(first, second, generator=seeded(), permutations=999) == 1 / 1000
    rng = seeded(2)
    rejected = 0
    for _ in range(200):
        shift = rng.normal(size=(2, 12)).repeat(5, axis=1) + 0.1 * rng.normal(size=(2, 60))
        rejected += (
            paired_permutation_test(*shift, generator=rng, permutations=199, patients=np.arange(12).repeat(5)) <= 0.05
        )
    assert rejected <= 20


def test_the_delong_areas_are_those_of_the_rank_statistic():
    diseased, first, second = two_scores(seeded(3), ill=12, well=20)
    first = first.round(1)  # with ties
    found = delong_test(diseased, first, second)
    assert found.first == pytest.approx(scan_auroc(first[~diseased], first[diseased]))
    assert found.second == pytest.approx(scan_auroc(second[~diseased], second[diseased]))
    assert found.low < found.difference < found.high


def test_the_delong_variance_is_that_of_all_pairs():
    """Against the definition: placements from the matrix of pairs, covariance of both groups."""
    diseased, first, second = two_scores(seeded(4), ill=7, well=9)
    pairs = np.stack(
        [(s[diseased][:, None] > s[~diseased]) + 0.5 * (s[diseased][:, None] == s[~diseased]) for s in (first, second)]
    )
    covariance = np.cov(pairs.mean(axis=2)) / 7 + np.cov(pairs.mean(axis=1)) / 9
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = delong_test(diseased, first, second)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.difference) / error))
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * error)


def test_equal_areas_are_called_different_as_often_as_the_level_says():
    rng, delong, exchanged = seeded(6), [], []
    for _ in range(300):
        case = two_scores(rng, ill=20, well=20)
        delong.append(delong_test(*case).p_value)
        exchanged.append(auroc_permutation_test(*case, generator=rng, permutations=39))
    for p in (delong, exchanged):
        assert (np.array(p) <= 0.05).mean() < 0.05 + 0.038
        assert abs(np.mean(p) - 0.5) < 0.07


def test_a_better_score_is_found_by_both_tests():
    case = two_scores(seeded(7), ill=60, well=60, first=2.0, second=0.5)
    assert delong_test(*case).p_value < 0.01
    assert auroc_permutation_test(*case, generator=seeded(), permutations=499) < 0.01
    assert auroc_permutation_test(*case, generator=seeded(), permutations=499, alternative="less") > 0.9


def test_exchanging_few_scans_is_counted_exactly():
    """A score against itself in another unit never differs; two scans give four exchanges."""
    diseased, first = np.array([True, False]), np.array([2.0, 1.0])
    assert auroc_permutation_test(diseased, first, 7 * first, generator=seeded()) == 1
    # Areas 1 and 0 differ by 1; exchanging one scan only ties both: 2 of 4 patterns reach 1.
    assert auroc_permutation_test(diseased, first, -first, generator=seeded()) == 0.5
    assert delong_test([1, 1, 0, 0], [4, 3, 2, 1], [4, 3, 2, 1]).p_value == 1
    assert np.isnan(delong_test([1, 1, 0, 0], [4, 3, 2, 1], [1, 2, 3, 4]).p_value)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidSettings, match="pair"):
        paired_permutation_test([1, 2], [1], generator=seeded())
    with pytest.raises(InvalidSettings, match="NaN"):
        paired_permutation_test([1, np.nan], [1, 2], generator=seeded())
    with pytest.raises(InvalidSettings, match="two-sided, greater, less"):
        paired_permutation_test([1, 2], [1, 2], generator=seeded(), alternative="more")
    with pytest.raises(InvalidSettings, match="one patient per value"):
        paired_permutation_test([1, 2], [1, 2], generator=seeded(), patients=["a"])
    with pytest.raises(InvalidSettings, match="one group only"):
        delong_test([1, 1], [1, 2], [1, 2])
    with pytest.raises(InvalidSettings, match="at least 2"):
        delong_test([1, 0, 0], [1, 2, 3], [1, 2, 3])
