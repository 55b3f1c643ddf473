"""Tests of two results of the same patients against each other: the patient is what is exchanged, never a resample.

Subsamples of the same scans are no independent observations: permuting the figures of fifty overlapping subsamples
makes any difference significant. Here the scans of a patient stay together, each exchange is as likely under the
hypothesis as what was observed, and the observed one is counted among those drawn (Phipson and Smyth, 2010), so that no
p-value is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import stats

from monailabel_app.errors import InvalidSettings

Alternative = Literal["two-sided", "greater", "less"]
Values = Sequence[float] | np.ndarray
_BLOCK = 2**22  # numbers at once


class AurocComparison(NamedTuple):
    """Areas of two scores of the same scans; low, high: limits of ``first - second``; p_value: two-sided."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def paired_permutation_test(
    first: Values,
    second: Values,
    *,
    generator: np.random.Generator,
    permutations: int = 10_000,
    alternative: Alternative = "two-sided",
    patients: Sequence[Any] | None = None,
) -> float:
    """p-value for a mean difference of 0 between two results of the same patients.

    Under the hypothesis the two methods are exchangeable within a patient, so each difference is as likely with either
    sign. All 2^n sign patterns are counted when there are no more than ``permutations`` of them; otherwise that many
    are drawn and p = (1 + count) / (1 + permutations). patients: whose each value is, when some have several; their
    differences are averaged and change sign together. alternative: ``greater`` asks whether ``first`` is larger.

    Raises InvalidSettings for lists that are empty, differ in length or hold NaN, another alternative, or fewer than
    one permutation.
    """
    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (first, second))
    if len(first) != len(second) or len(first) == 0:
        raise InvalidSettings(f"Expected one pair per patient, got {len(first)} and {len(second)} values")
    differences = first - second
    if np.isnan(differences).any() or permutations < 1:
        raise InvalidSettings("Expected values without NaN and at least one permutation")
    if patients is not None:
        whose = _numbered(patients, len(differences))
        differences = np.bincount(whose, differences) / np.bincount(whose)
    return _share_as_extreme(
        lambda exchanged: (1 - 2.0 * exchanged) @ differences,
        len(differences),
        scale=float(np.abs(differences).sum()),
        cost=1,
        alternative=alternative,
        permutations=permutations,
        generator=generator,
    )


def auroc_permutation_test(
    diseased: Sequence[bool] | np.ndarray,
    first: Values,
    second: Values,
    *,
    generator: np.random.Generator,
    permutations: int = 10_000,
    alternative: Alternative = "two-sided",
    patients: Sequence[Any] | None = None,
) -> float:
    """p-value for equal areas under the ROC curve of two scores of the same scans.

    The ranks of the two scores are exchanged within patients, all scans of one together (Bandos, Rockette and Gur,
    Statistics in Medicine 24, 2005): scores of different methods have no common scale, their ranks have. Counted and
    drawn as in ``paired_permutation_test``. Raises InvalidSettings as that does, and where one group is empty.
    """
    diseased, ranks = _two_scores(diseased, first, second)
    whose = _numbered(range(len(diseased)) if patients is None else patients, len(diseased))

    def difference(exchanged: np.ndarray) -> np.ndarray:
        swapped = exchanged[:, whose]
        one, other = np.where(swapped, ranks[1], ranks[0]), np.where(swapped, ranks[0], ranks[1])
        return _aurocs(one, diseased) - _aurocs(other, diseased)

    return _share_as_extreme(
        difference,
        int(whose.max()) + 1,
        scale=1.0,
        cost=len(diseased) / (whose.max() + 1),
        alternative=alternative,
        permutations=permutations,
        generator=generator,
    )


def delong_test(
    diseased: Sequence[bool] | np.ndarray, first: Values, second: Values, *, level: float = 0.95
) -> AurocComparison:
    """Areas under the ROC curve of two scores of the same scans, and their difference.

    DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988): the covariance of the areas from each scan's share in them,
    and the normal distribution. For one scan per patient; where patients have several, ``auroc_permutation_test``. The
    p-value is NaN where the areas differ although no scan varies in its share, as in two perfect but opposite scores.

    Raises InvalidSettings for lists that do not fit or hold NaN, a level outside (0, 1), and fewer than two scans in a
    group.
    """
    diseased, ranks = _two_scores(diseased, first, second)
    ill, well = int(diseased.sum()), int((~diseased).sum())
    if min(ill, well) < 2 or not 0 < level < 1:
        raise InvalidSettings(
            f"Expected at least 2 scans with and without disease and a level in (0, 1), got {ill}, {well} and {level}"
        )
    # Of each diseased scan the share of healthy ones it lies above, of each healthy one the share it lies below.
    above = (ranks[:, diseased] - stats.rankdata(ranks[:, diseased], axis=1)) / well
    below = 1 - (ranks[:, ~diseased] - stats.rankdata(ranks[:, ~diseased], axis=1)) / ill
    areas = above.mean(axis=1)
    difference = float(areas[0] - areas[1])
    variance = np.var(above[0] - above[1], ddof=1) / ill + np.var(below[0] - below[1], ddof=1) / well
    error = float(np.sqrt(variance))
    if error > 1e-12:
        p_value = float(2 * stats.norm.sf(abs(difference) / error))
    else:
        p_value = 1.0 if abs(difference) < 1e-12 else float("nan")
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    return AurocComparison(
        float(areas[0]), float(areas[1]), difference, difference - reach, difference + reach, p_value
    )


def _share_as_extreme(
    statistic: Callable[[np.ndarray], np.ndarray],
    units: int,
    *,
    scale: float,
    cost: float,
    alternative: Alternative,
    permutations: int,
    generator: np.random.Generator,
) -> float:
    """Share of exchanges (k, units) bool whose statistic (k,) is at least as extreme as without any."""
    if alternative not in get_args(Alternative) or permutations < 1:
        raise InvalidSettings(
            f"Expected an alternative out of {', '.join(get_args(Alternative))} and at least one permutation, "
            f"got {alternative!r} and {permutations}"
        )
    sided: Callable[[np.ndarray], np.ndarray] = {
        "two-sided": np.abs,
        "greater": lambda values: values,
        "less": lambda values: -values,
    }[alternative]
    # Sums in another order must count as ties.
    observed = float(sided(statistic(np.zeros((1, units), dtype=bool)))[0]) - 1e-12 * scale
    if units < 63 and 2**units <= permutations:
        patterns = np.array(list(product((False, True), repeat=units)))
        return float((sided(statistic(patterns)) >= observed).mean())
    extreme, left = 0, permutations
    while left:
        block = min(left, 1 + int(_BLOCK / (units * cost)))
        exchanged = generator.integers(2, size=(block, units)).astype(bool)
        extreme += int((sided(statistic(exchanged)) >= observed).sum())
        left -= block
    return (1 + extreme) / (1 + permutations)


def _aurocs(scores: np.ndarray, diseased: np.ndarray) -> np.ndarray:
    """(k, scans) -> (k,): the Mann-Whitney form, ties counted half."""
    ill, well = int(diseased.sum()), int((~diseased).sum())
    return (stats.rankdata(scores, axis=1)[:, diseased].sum(axis=1) - ill * (ill + 1) / 2) / (ill * well)


def _two_scores(diseased: Sequence[bool] | np.ndarray, first: Values, second: Values) -> tuple[np.ndarray, np.ndarray]:
    diseased = np.asarray(diseased).astype(bool).ravel()
    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (first, second))
    if not len(diseased) == len(first) == len(second):
        raise InvalidSettings(
            f"Expected a truth and two scores per scan, got {len(diseased)}, {len(first)} and {len(second)}"
        )
    if np.isnan(first).any() or np.isnan(second).any():
        raise InvalidSettings("Expected scores without NaN")
    if not diseased.any() or diseased.all():
        raise InvalidSettings("Expected scans with and without disease, got one group only")
    return diseased, stats.rankdata(np.stack([first, second]), axis=1)


def _numbered(patients: Sequence[Any], count: int) -> np.ndarray:
    """Whose each value is, as 0, 1, 2 ... in the order of first appearance."""
    names = list(patients)
    if len(names) != count:
        raise InvalidSettings(f"Expected one patient per value, got {len(names)} for {count} values")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])
