"""Resampling of patients as weights: one draw serves every figure of every detector, so that differences are paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from monailabel_app.errors import InvalidSettings

from .case_histograms import average_precisions, best_dices

_BLOCK = 200  # resampled histograms at once


def patient_weights(
    cases: Sequence[str], healthy: Sequence[str] = (), *, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How often each case and each healthy scan counts in each resample: (resamples + 1, n) each.

    cases, healthy: the patient of each scan. Patients are drawn with replacement, all scans of one together; those who
    are only healthy and those with lesions are drawn apart, so that no resample lacks either. The first row is all
    ones: the estimate itself. Raises InvalidSettings without a case.
    """
    if not len(cases):
        raise InvalidSettings("expected at least one case to resample, got none")
    generator = np.random.default_rng(seed)
    ill = list(dict.fromkeys(cases))
    well = [name for name in dict.fromkeys(healthy) if name not in set(ill)]
    drawn: dict[str, np.ndarray] = {}
    for group in (ill, well):
        if group:
            counts = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
            drawn |= {name: np.concatenate([[1], counts[:, i]]) for i, name in enumerate(group)}

    def of(names: Sequence[str]) -> np.ndarray:
        return np.stack([drawn[name] for name in names], axis=1) if len(names) else np.zeros((resamples + 1, 0))

    return of(cases), of(healthy)


def pooled_precisions(weights: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and best Dice of all cases together, per resample.

    weights: (r, n). counts: (n, 2, BINS). Returns two arrays (r,).
    """
    precisions, dices = pooled_statistics(weights, counts, average_precisions, best_dices)
    return precisions, dices


def pooled_statistics(
    weights: np.ndarray, counts: np.ndarray, *statistics: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Figures of all cases' voxels together, per resample: an array (r,) for each statistic.

    weights: (r, n). counts: (n, 2, BINS). statistics: of histograms (k, 2, BINS) -> (k,), of ``case_histograms``.
    """
    used = counts.any(axis=(0, 1))  # empty bins change no statistic; the lowest one stays, it is never marked
    used[0] = True
    counts = counts[..., used]
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    found: list[list[np.ndarray]] = [[] for _ in statistics]
    for first in range(0, len(weights), _BLOCK):
        pooled = (weights[first : first + _BLOCK] @ flat).reshape(-1, *counts.shape[1:])
        for values, statistic in zip(found, statistics, strict=True):
            values.append(statistic(pooled))
    return tuple(np.concatenate(values) for values in found)


def weighted_means(weights: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Mean over scans per resample, (r,); scans without a value (NaN) are left out."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    return weighted_ratio(weights, np.where(known, values, 0), known)


def weighted_ratio(weights: np.ndarray, above: Sequence[float], below: Sequence[float]) -> np.ndarray:
    """Sum of ``above`` over sum of ``below`` per resample, (r,); NaN where there is nothing below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.asarray(above, np.float64)) / (weights @ np.asarray(below, np.float64))


def weighted_aurocs(
    weights: np.ndarray, scores: Sequence[float], healthy_weights: np.ndarray, healthy_scores: Sequence[float]
) -> np.ndarray:
    """Chance that a lesioned scan scores above a healthy one, ties counted half, per resample: (r,)."""
    lesioned, healthy = np.asarray(scores)[:, None], np.asarray(healthy_scores)[None]
    wins = (lesioned > healthy) + 0.5 * (lesioned == healthy)
    total = weights.sum(axis=1) * healthy_weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("rn,nm,rm->r", weights, wins, healthy_weights, optimize=True) / total


def limits(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values (the first, the estimate, not among them); NaN where none is known."""
    drawn = values[1:][~np.isnan(values[1:])]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    return float(low), float(high)


def expanded_level(people: int, level: float = 0.95) -> float:
    """The level whose percentiles hold ``level`` when ``people`` are resampled; 1 for fewer than two.

    Resampling n people shows their spread too small by (n - 1) / n and knows no tails beyond the normal ones, so the
    percentiles are taken further out, as Student's t has them (the expanded percentile interval of Hesterberg, The
    American Statistician 69, 2015).
    """
    if people < 2:
        return 1.0
    tail = stats.norm.cdf(np.sqrt(people / (people - 1)) * stats.t.ppf((1 - level) / 2, people - 1))
    return float(1 - 2 * tail)
