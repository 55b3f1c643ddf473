"""Whether healthy scans still look to a model like those it was calibrated on.

Two questions: of many healthy scans, whether their scores come from the calibration's distribution (Kolmogorov-Smirnov
test of two samples); of one scan, healthy or not, whether the bulk of its calibrated voxels is distributed as in the
calibration's scans. The bulk is what lies below the calibration's 90 % quantile. A lesion that takes a share of the
voxels away from there, moves the distribution by no more than this share, which is a few percent for the largest, as
long as the map elsewhere stays the same (a network's residual does not quite: measured up to 0.1); a change of scanner,
protocol or preparation moves it by much more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from monailabel_app.errors import InvalidSettings

from .operating_points import numbers

BULK = 0.9
_LEVELS = np.linspace(0.0, 1.0, 101)
_FINE = (np.arange(1000) + 0.5) / 1000  # what a scan puts into the pool
# How far beyond the largest distance of a calibration scan is clearly beyond: by more than a lesion moves a scan.
# Measured with cold_diffusion_t1: 20 to 23 ml, implanted into three healthy heads, took it further away by up to 0.07
# and nearer by up to 0.11; scans of other sources stand at more than 0.5.
_TIMES, _BEYOND = 1.25, 0.1
_DRIFTED_P = 0.05


@dataclass(frozen=True)
class DriftReference:
    """quantiles: 101 of the pooled healthy voxels, every patient with the same weight.

    distances: of each healthy scan to the pooled scans of the other patients.
    """

    quantiles: tuple[float, ...]
    distances: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"quantiles": list(self.quantiles), "distances": list(self.distances)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DriftReference:
        """The inverse of ``to_json``. Raises KeyError, TypeError or ValueError for what is none."""
        quantiles, distances = numbers(value["quantiles"]), numbers(value["distances"])
        if len(quantiles) != len(_LEVELS):
            raise ValueError(f"expected {len(_LEVELS)} quantiles")
        return cls(quantiles, distances)


@dataclass(frozen=True)
class ScanDrift:
    """distance: of Kolmogorov and Smirnov, 0 to 1. p_value: its rank among those of the calibration's ``scans``."""

    distance: float
    p_value: float
    scans: int
    median: float
    largest: float

    @property
    def drifted(self) -> bool:
        """Whether the scan is clearly further away than every calibration scan; its p-value is then at its floor."""
        return self.distance > max(_TIMES * self.largest, self.largest + _BEYOND)

    def sentence(self) -> str:
        """The warning that a result carries; empty for a scan that has not drifted."""
        if not self.drifted:
            return ""
        return (
            f"the healthy-looking bulk of this scan differs from the {self.scans} healthy scans of the calibration "
            f"(distance {self.distance:.2f}, theirs up to {self.largest:.2f}): thresholds and p-value may not hold for "
            "this scanner or protocol; calibrate on own healthy scans: python main.py calibrate"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "distance": round(self.distance, 4),
            "p_value": round(self.p_value, 4),
            "healthy_scans": self.scans,
            "healthy_median": round(self.median, 4),
            "healthy_largest": round(self.largest, 4),
            "drifted": self.drifted,
        }


def drift_reference(healthy_values: Sequence[np.ndarray], patients: Sequence[str]) -> DriftReference:
    """From calibrated brain voxels of healthy scans, (voxels,) each, standardised without their own patient.

    A single patient is compared with itself.
    """
    ordered = [np.sort(values) for values in healthy_values]
    own = np.array([values[(_FINE * len(values)).astype(int)] for values in ordered], dtype=np.float64)
    names = np.array(patients)
    distances = []
    for values, name in zip(ordered, patients, strict=True):
        others = np.flatnonzero(names != name)
        pooled = _pooled(own, names, others if len(others) else np.arange(len(names)))
        distances.append(round(bulk_distance(values, pooled), 5))
    pooled = _pooled(own, names, np.arange(len(names)))
    return DriftReference(tuple(round(float(value), 6) for value in pooled), tuple(distances))


def bulk_distance(values: np.ndarray, quantiles: Sequence[float]) -> float:
    """Largest difference of the two cumulated distributions below the reference's 90 % quantile, 0 to 1.

    values: (voxels,) in any order. quantiles: 101 of the reference.
    """
    table = np.asarray(quantiles, dtype=np.float64)
    at = np.unique(table[: round(BULK * (len(table) - 1)) + 1])
    # Many equal values, such as the zeros of a one-sided score, count up to the last of them.
    reference = _LEVELS[np.searchsorted(table, at, side="right") - 1]
    share = np.searchsorted(np.sort(values), at, side="right") / len(values)
    return float(np.abs(share - reference).max())


def scan_drift(levels: Sequence[np.ndarray], reference: DriftReference) -> ScanDrift:
    """The drift of one scan. levels: its calibrated voxels, (voxels,) as a whole, or of every level looked at alone.

    Levels that were analysed by themselves have the mean of their distances, as the calibration's are of single slices.
    """
    distance = float(np.mean([bulk_distance(values, reference.quantiles) for values in levels if len(values)] or [1.0]))
    healthy = np.asarray(reference.distances)
    p_value = float((1 + (healthy >= distance).sum()) / (len(healthy) + 1))
    return ScanDrift(distance, p_value, len(healthy), float(np.median(healthy)), float(healthy.max()))


def score_drift(scores: Collection[float], calibrated: Collection[float]) -> dict[str, Any]:
    """Whether scan scores of healthy scans come from the calibration's distribution: JSON types.

    ``distance`` (0 to 1) and ``p_value`` of the two-sample Kolmogorov-Smirnov test, both numbers of scans, and a
    sentence. Raises InvalidSettings without scores or for NaN.
    """
    given, healthy = (np.asarray(list(values), dtype=np.float64) for values in (scores, calibrated))
    if not len(given) or not len(healthy) or np.isnan(given).any() or np.isnan(healthy).any():
        raise InvalidSettings(
            f"expected the scores of healthy scans and of the calibration, got {len(given)} and {len(healthy)} of them"
        )
    result = stats.ks_2samp(given, healthy)
    higher = float(np.median(given) - np.median(healthy))
    found = {
        "distance": round(float(result.statistic), 4),
        "p_value": float(f"{result.pvalue:.3g}"),
        "scans": len(given),
        "calibration_scans": len(healthy),
        "median_difference": round(higher, 4),
    }
    return {**found, "drifted": found["p_value"] < _DRIFTED_P, "sentence": _in_words(found)}


def rank_drift(p_values: Collection[float], calibration_scans: int) -> dict[str, Any] | None:
    """``score_drift`` of healthy scans of which only the rank p-values among the calibration's scores were kept.

    The statistic depends on the order of the scores alone, which these give. None where they are not ranks among so
    many scans.
    """
    ranks = np.asarray(list(p_values), dtype=np.float64) * (calibration_scans + 1)
    if not len(ranks) or calibration_scans < 1 or not np.allclose(ranks, np.rint(ranks), atol=1e-3):
        return None
    # So many of the calibration's scores, here 1 to n, are not below the scan's.
    not_below = np.rint(ranks) - 1
    found = score_drift(calibration_scans - not_below + 0.5, range(1, calibration_scans + 1))
    del found["median_difference"]
    return found


def _in_words(found: Mapping[str, Any]) -> str:
    numbers = (
        f"(Kolmogorov-Smirnov distance {found['distance']:.2f}, p = {found['p_value']:g}; {found['scans']} scans "
        f"against {found['calibration_scans']} of the calibration)"
    )
    if found["p_value"] < _DRIFTED_P:
        way = "higher" if found["median_difference"] > 0 else "lower"
        return f"the scores of these healthy scans are distributed otherwise, {way} on the whole {numbers}"
    few = "" if min(found["scans"], found["calibration_scans"]) >= 20 else "; so few scans show large differences only"
    return f"no difference of the scores shows {numbers}{few}"


def _pooled(own: np.ndarray, names: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Quantiles of several scans together, (101,), from fine ones of each: every patient with the same weight.

    Each is the value of a voxel, so that many equal ones stay equal.
    """
    weights = np.array([1.0 / (names[chosen] == name).sum() for name in names[chosen]])
    values, weight = own[chosen].ravel(), np.repeat(weights, own.shape[1])
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weight[order]) / weight.sum()
    return values[order][np.minimum(np.searchsorted(cumulated, _LEVELS - 1e-12), len(order) - 1)]
