"""Thresholds chosen by their false-positive rate on held-out healthy scans, with an interval over scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import stats

TARGET_FPR: Mapping[str, float] = MappingProxyType({"sensitive": 0.05, "balanced": 0.01, "specific": 0.001})
_RESAMPLES = 20_000  # with few scans the limits are far out in the tails
_LEVEL = 0.95


@dataclass(frozen=True)
class OperatingPoint:
    """threshold: in healthy standard deviations. measured_fpr: share of healthy brain voxels above it.

    interval: 95 % bootstrap interval of the rate over patients, expanded for their number. worst_fpr: the largest rate
    of a single healthy scan.
    """

    target_fpr: float
    threshold: float
    measured_fpr: float
    interval: tuple[float, float]
    worst_fpr: float
    healthy_scans: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of ``to_json``."""
        return cls(**{**value, "interval": tuple(value["interval"])})


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
    groups = [[i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]
    count = len(groups)
    share = {i: 1.0 / (count * len(group)) for group in groups for i in group}
    weights = np.concatenate([np.full(len(v), share[i] / len(v)) for i, v in enumerate(healthy_values)])
    pooled = np.concatenate(healthy_values)
    order = np.argsort(pooled)
    cumulated = np.cumsum(weights[order])
    generator = np.random.default_rng(seed)
    picks = generator.integers(count, size=(_RESAMPLES, count))
    tail = _expanded_tail(count)
    points = {}
    for name, target in TARGET_FPR.items():
        threshold = float(pooled[order][min(np.searchsorted(cumulated, 1 - target), len(pooled) - 1)])
        rates = np.array([float((values > threshold).mean()) for values in healthy_values])
        means = np.array([rates[group].mean() for group in groups])
        low, high = np.quantile(means[picks].mean(axis=1), (tail, 1 - tail))
        points[name] = OperatingPoint(
            target_fpr=target,
            threshold=threshold,
            measured_fpr=float(means.mean()),
            interval=(float(low), float(high)),
            worst_fpr=float(rates.max()),
            healthy_scans=len(healthy_values),
        )
    return points


def _expanded_tail(count: int) -> float:
    """The share of resamples to cut on either side, so that the interval is as wide as ``count`` patients warrant."""
    if count < 2:
        return 0.0
    return float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf((1 - _LEVEL) / 2, count - 1)))
