"""Thresholds chosen by their false-positive rate on held-out healthy scans, with an interval over scans.

Beside these rates of voxels there is the point ``bounded``, whose threshold bounds a volume (``conformal``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import stats

TARGET_FPR: Mapping[str, float] = MappingProxyType({"sensitive": 0.05, "balanced": 0.01, "specific": 0.001})
BOUNDED = "bounded"
POINTS = (*TARGET_FPR, BOUNDED)  # whatever can be chosen
_RESAMPLES = 20_000  # with few scans the limits are far out in the tails
_LEVEL = 0.95


@dataclass(frozen=True)
class OperatingPoint:
    """threshold: in healthy standard deviations. measured_fpr: share of healthy brain voxels above it.

    interval: 95 % bootstrap interval of the rate over patients, expanded for their number. worst_fpr: the largest rate
    of a single healthy scan. target_fpr: None for a point that is chosen by its volume, which is then target_ml.

    false_ml: volume marked in each healthy scan, components under 0.1 ml left out, in the order of the calibration's
    scan scores. bound_ml: what a further healthy scan stays below with a probability of bound_level (``conformal``).
    Calibrations of earlier versions have none of these.
    """

    target_fpr: float | None
    threshold: float
    measured_fpr: float
    interval: tuple[float, float]
    worst_fpr: float
    healthy_scans: int
    target_ml: float | None = None
    false_ml: tuple[float, ...] = ()
    bound_ml: float | None = None
    bound_level: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of ``to_json``. Raises KeyError, TypeError or ValueError for what is no point."""
        low, high = numbers(value["interval"])
        point = cls(**{**value, "interval": (low, high), "false_ml": numbers(value.get("false_ml", ()))})
        may_miss = (point.target_fpr, point.target_ml, point.bound_ml, point.bound_level)
        numbers((point.threshold, point.measured_fpr, point.worst_fpr, point.healthy_scans))
        numbers([value for value in may_miss if value is not None])
        return point


def numbers(values: Any) -> tuple[float, ...]:
    """A list of numbers out of a file, unchanged. Raises TypeError for anything else."""
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ):
        raise TypeError("expected a list of numbers")
    return tuple(values)


def choose_operating_points(
    healthy_values: Sequence[np.ndarray], *, patients: Sequence[str] | None = None, seed: int = 0
) -> dict[str, OperatingPoint]:
    """One threshold per operating point from calibrated brain voxels of healthy scans, each (voxels,).

    patients: whom each scan shows, by default somebody else each. Every patient has the same weight, whatever the
    number of scans and the size of the brain, and is what the interval resamples. The values must come from scans that
    neither trained the network nor gave the statistics they are standardised with.

    Resampling n patients shows their spread too small by (n - 1) / n and knows no tails beyond the normal ones: with 5
    of them a plain percentile interval is a third too narrow. The percentiles are therefore taken further out, as
    Student's t has them (the expanded percentile interval of Hesterberg, The American Statistician 69, 2015).
    """
    names = list(patients) if patients is not None else list(range(len(healthy_values)))
    groups = _groups(names)
    share = {i: 1.0 / (len(groups) * len(group)) for group in groups for i in group}
    weights = np.concatenate([np.full(len(v), share[i] / len(v)) for i, v in enumerate(healthy_values)])
    pooled = np.concatenate(healthy_values)
    order = np.argsort(pooled)
    cumulated = np.cumsum(weights[order])
    points = {}
    for name, target in TARGET_FPR.items():
        threshold = float(pooled[order][min(np.searchsorted(cumulated, 1 - target), len(pooled) - 1)])
        points[name] = point_at(threshold, healthy_values, names, target=target, seed=seed)
    return points


def point_at(
    threshold: float,
    healthy_values: Sequence[np.ndarray],
    patients: Sequence[Any],
    *,
    target: float | None = None,
    seed: int = 0,
) -> OperatingPoint:
    """The point of a given threshold: its rates on healthy scans. Arguments as in ``choose_operating_points``."""
    groups = _groups(patients)
    count = len(groups)
    picks = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    tail = _expanded_tail(count)
    rates = np.array([float((values > threshold).mean()) for values in healthy_values])
    means = np.array([rates[group].mean() for group in groups])
    low, high = np.quantile(means[picks].mean(axis=1), (tail, 1 - tail))
    return OperatingPoint(
        target_fpr=target,
        threshold=threshold,
        measured_fpr=float(means.mean()),
        interval=(float(low), float(high)),
        worst_fpr=float(rates.max()),
        healthy_scans=len(healthy_values),
    )


def threshold_without(ordered: Sequence[np.ndarray], rate: float, patients: Sequence[Any]) -> list[float]:
    """For each scan the threshold of a rate of healthy voxels that the other patients give.

    ordered: (voxels,) per scan, rising. Every patient has the same weight.
    """
    groups = _groups(patients)
    found = {}
    for own in groups:
        others = [
            (ordered[i], 1.0 / (len(group) * len(ordered[i]))) for group in groups if group is not own for i in group
        ]
        low, high = 0.0, max(float(v[-1]) for v, _ in others)
        allowed = rate * (len(groups) - 1)
        for _ in range(30):
            middle = np.float32((low + high) / 2)
            above = sum(weight * (len(v) - int(v.searchsorted(middle, side="right"))) for v, weight in others)
            low, high = (float(middle), high) if above > allowed else (low, float(middle))
        found |= dict.fromkeys(own, high)
    return [found[index] for index in range(len(ordered))]


def _groups(patients: Sequence[Any]) -> list[list[int]]:
    """The indices of the scans of each patient."""
    return [[i for i, other in enumerate(patients) if other == name] for name in dict.fromkeys(patients)]


def _expanded_tail(count: int) -> float:
    """The share of resamples to cut on either side, so that the interval is as wide as ``count`` patients warrant."""
    if count < 2:
        return 0.0
    return float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf((1 - _LEVEL) / 2, count - 1)))
