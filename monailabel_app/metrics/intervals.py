"""Confidence intervals and paired tests with the patient as the unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from monailabel_app.errors import InvalidSettings


class Interval(NamedTuple):
    """An estimate with its confidence limits; ``resamples`` is how many of them gave a value."""

    estimate: float
    low: float
    high: float
    resamples: int


def bootstrap_interval(
    statistic: Callable[..., float],
    *groups: Sequence[Any],
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of ``statistic(*groups)``.

    Each group is a sequence with one element per patient (a number, a row, a LesionCounts ...): patients are
    drawn with replacement within their group, never voxels, since those of one patient are not independent.
    Arrays are passed on as arrays, other sequences as lists. Resamples for which the statistic is NaN are
    left out; the limits are NaN if none is left.

    Raises InvalidSettings for an empty group, fewer than one resample, or a level outside (0, 1).
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise InvalidSettings("Expected at least one patient in each group to resample")
    if resamples < 1 or not 0 < level < 1:
        raise InvalidSettings(
            f"Expected resamples >= 1 and a level in (0, 1), got resamples={resamples}, level={level}"
        )
    values = np.empty(resamples)
    for i in range(resamples):
        values[i] = statistic(*(_take(g, generator.integers(len(g), size=len(g))) for g in groups))
    values = values[~np.isnan(values)]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
    return Interval(float(statistic(*groups)), float(low), float(high), len(values))


def paired_permutation_test(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    generator: np.random.Generator,
    permutations: int = 10_000,
) -> float:
    """Two-sided p-value for a mean difference of 0 between two results of the same patients.

    Under the hypothesis the two methods are exchangeable within a patient, so each difference is as likely
    with either sign. All 2^n sign patterns are counted when there are no more than ``permutations`` of them;
    otherwise that many are drawn and p = (1 + count) / (1 + permutations).

    Raises InvalidSettings for lists that are empty, differ in length or hold NaN, or fewer than one
    permutation.
    """
    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (first, second))
    if len(first) != len(second) or len(first) == 0:
        raise InvalidSettings(f"Expected one pair per patient, got {len(first)} and {len(second)} values")
    differences = first - second
    if np.isnan(differences).any() or permutations < 1:
        raise InvalidSettings("Expected values without NaN and at least one permutation")
    n = len(differences)
    observed = abs(differences.sum())
    tolerance = 1e-12 * np.abs(differences).sum()  # sums in another order must count as ties
    if n < 63 and 2**n <= permutations:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        return float((np.abs(signs @ differences) >= observed - tolerance).mean())
    extreme, left = 0, permutations
    while left:
        block = min(left, 1 + 2**22 // n)
        signs = 2.0 * generator.integers(2, size=(block, n)) - 1
        extreme += int((np.abs(signs @ differences) >= observed - tolerance).sum())
        left -= block
    return (1 + extreme) / (1 + permutations)


def _take(group: Sequence[Any], index: np.ndarray) -> Any:
    return group[index] if isinstance(group, np.ndarray) else [group[i] for i in index]
