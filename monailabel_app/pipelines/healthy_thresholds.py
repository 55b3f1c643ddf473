"""Thresholds from healthy scans with any of them left out: a few numbers per scan decide them, not its map."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from monailabel_app.calibration.calibrated_map import scan_score
from monailabel_app.calibration.conformal import bounds_of, upper_bound
from monailabel_app.calibration.false_volume import false_volume_curve, of_patients
from monailabel_app.calibration.operating_points import OperatingPoint
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.postprocessing.delineate import delineated

# From 1/64 to 128 healthy standard deviations, in steps of 0.14 %.
_STEPS = 512
GRID = (2.0 ** (np.arange(-6 * _STEPS, 7 * _STEPS + 1) / _STEPS)).astype(np.float32)


@dataclass(frozen=True)
class HealthySummary:
    """What thresholds need of one healthy scan's calibrated map.

    above: (len(GRID),) float32, the share of its analysed voxels above each value of GRID. least: the least threshold
    that marks no more than the volume of the point ``bounded``. score: the scan score.
    """

    above: np.ndarray
    least: float
    score: float


def summarise(
    anomaly_map: np.ndarray,
    inside: np.ndarray,
    spacing_mm: Sequence[float] = (2.0, 2.0, 2.0),
    of_scan: Callable[[np.ndarray], float] = scan_score,
) -> HealthySummary:
    """anomaly_map: (X, Y, Z) calibrated, the scan's own person left out. inside: (X, Y, Z) bool, what is analysed."""
    values = np.sort(anomaly_map[inside])
    above = 1 - np.searchsorted(values, GRID, side="right") / max(len(values), 1)
    limit_ml, _ = bounds_of(anomaly_map.shape[2])
    outlined = delineated(anomaly_map, spacing_mm)
    least = false_volume_curve(outlined, limit_ml=limit_ml).least_threshold(limit_ml)
    return HealthySummary(above.astype(np.float32), least, of_scan(anomaly_map))


class HealthyThresholds:
    """The thresholds that healthy scans give, every patient with the same weight.

    patients: whom each scan shows, by default somebody else each.
    """

    def __init__(self, summaries: Sequence[HealthySummary], patients: Sequence[str] | None = None) -> None:
        self._above = np.stack([summary.above for summary in summaries])
        self._least = [summary.least for summary in summaries]
        self._scores = [summary.score for summary in summaries]
        self._patients = list(patients) if patients is not None else [str(i) for i in range(len(summaries))]
        counts = {name: self._patients.count(name) for name in set(self._patients)}
        self._weights = np.array([1 / counts[name] for name in self._patients])
        self._total = self._weights @ self._above

    def point(self, point: OperatingPoint, without: Collection[int] = ()) -> float:
        """The threshold of an operating point: by its rate of voxels, or ``bounded`` by its volume."""
        return self.bounded(without) if point.target_fpr is None else self.rate(point.target_fpr, without)

    def rate(self, rate: float, without: Collection[int] = ()) -> float:
        """The least value of GRID that no more than a share ``rate`` of healthy voxels lies above."""
        return self._rates(without)(rate)

    def tails(self, without: Collection[int] = ()) -> tuple[float, ...]:
        """The thresholds of TAIL_SHARES."""
        of = self._rates(without)
        return tuple(of(share) for share in TAIL_SHARES)

    def bounded(self, without: Collection[int] = ()) -> float:
        """The threshold that bounds the falsely marked volume (``calibration.conformal``)."""
        kept = self._kept(without)
        values = of_patients([self._least[i] for i in kept], [self._patients[i] for i in kept])
        return upper_bound(values).value

    def scores(self, without: Collection[int] = ()) -> tuple[float, ...]:
        """The scan scores."""
        return tuple(self._scores[i] for i in self._kept(without))

    def _kept(self, without: Collection[int]) -> list[int]:
        return [index for index in range(len(self._least)) if index not in without]

    def _rates(self, without: Collection[int]) -> Callable[[float], float]:
        gone = sorted(without)
        total = self._total - self._weights[gone] @ self._above[gone]
        mean = total / (self._weights.sum() - self._weights[gone].sum())

        def of(rate: float) -> float:
            enough = np.flatnonzero(mean <= rate + 1e-7)  # sums of float32 leave some 1e-8 where there is nothing
            return float(GRID[enough[0] if len(enough) else -1])

        return of
