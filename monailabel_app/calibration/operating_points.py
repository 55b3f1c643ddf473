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

    interval: 95 % bootstrap interval of the rate over scans, expanded for their number. worst_fpr: the largest rate of
    a single healthy scan.
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


def choose_operating_points(healthy_values: Sequence[np.ndarray], *, seed: int = 0) -> dict[str, OperatingPoint]:
    """One threshold per operating point from calibrated brain voxels of healthy scans, each (voxels,).

    Every scan has the same weight, whatever its brain size. The values must come from scans that neither trained
    the network nor gave the statistics they are standardised with.

    Resampling n scans shows their spread too small by (n - 1) / n and knows no tails beyond the normal ones: with 5
    scans a plain percentile interval is a third too narrow. The percentiles are therefore taken further out, as
    Student's t has them (the expanded percentile interval of Hesterberg, The American Statistician 69, 2015).
    """
    weights = np.concatenate([np.full(len(v), 1.0 / len(v)) for v in healthy_values]) / len(healthy_values)
    pooled = np.concatenate(healthy_values)
    order = np.argsort(pooled)
    cumulated = np.cumsum(weights[order])
    generator = np.random.default_rng(seed)
    count = len(healthy_values)
    picks = generator.integers(count, size=(_RESAMPLES, count))
    tail = _expanded_tail(count)
    points = {}
    for name, target in TARGET_FPR.items():
        threshold = float(pooled[order][min(np.searchsorted(cumulated, 1 - target), len(pooled) - 1)])
        rates = np.array([float((values > threshold).mean()) for values in healthy_values])
        low, high = np.quantile(rates[picks].mean(axis=1), (tail, 1 - tail))
        points[name] = OperatingPoint(
            target_fpr=target,
            threshold=threshold,
            measured_fpr=float(rates.mean()),
            interval=(float(low), float(high)),
            worst_fpr=float(rates.max()),
            healthy_scans=count,
        )
    return points


def _expanded_tail(count: int) -> float:
    """The share of resamples to cut on either side, so that the interval is as wide as ``count`` scans warrant."""
    if count < 2:
        return 0.0
    return float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf((1 - _LEVEL) / 2, count - 1)))
