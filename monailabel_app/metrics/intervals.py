"""Confidence intervals with the patient as the unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def _take(group: Sequence[Any], index: np.ndarray) -> Any:
    return group[index] if isinstance(group, np.ndarray) else [group[i] for i in index]
