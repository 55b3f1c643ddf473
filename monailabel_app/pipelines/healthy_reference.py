"""Calibrated maps of a model for scans that its calibration has seen: standardised without their own person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monailabel_app.calibration.calibrated_map import analysed_mask, calibrated_map
from monailabel_app.calibration.operating_points import TARGET_FPR
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics

from .analysis import Analysis
from .predict import AnomalyModel

_SAME = 0.1  # of a healthy standard deviation


class HealthyReference:
    """What a model makes of the healthy scans of a set, and thereby its calibration with any one of them left out."""

    def __init__(self, model: AnomalyModel, scans: Sequence[Analysis]) -> None:
        self._model, self._scans = model, list(scans)
        self._masks = [scan.prepared.brain_mask for scan in self._scans]
        self._moments: dict[str, HealthyMoments] = {}
        self._maps: dict[tuple[str, str], list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._scans)

    def statistics(self, score: str, without: int | None = None) -> VoxelStatistics:
        """Voxel statistics of a score over all scans, or over all but one."""
        if score not in self._moments:
            self._moments[score] = HealthyMoments([scan.raw(score) for scan in self._scans], self._masks)
        return self._moments[score].statistics(without=without)

    def maps(self, score: str, smoothing: str) -> list[np.ndarray]:
        """The calibrated map of each scan, standardised with the others."""
        if (score, smoothing) not in self._maps:
            self._maps[score, smoothing] = [
                self.map_of(scan, score, smoothing, without=index) for index, scan in enumerate(self._scans)
            ]
        return self._maps[score, smoothing]

    def map_of(self, scan: Analysis, score: str, smoothing: str, *, without: int | None) -> np.ndarray:
        """The calibrated map of any scan, with statistics that leave one healthy scan out."""
        return calibrated_map(
            scan.raw(score),
            scan.prepared.brain_mask,
            self.statistics(score, without),
            score=score,
            smoothing=smoothing,
            erosion_mm=self._model.calibration.erosion_mm,
        )

    def threshold(self, score: str, smoothing: str, *, point: str = "balanced", without: int | None = None) -> float:
        """The threshold that an operating point gets from all scans, or from all but one."""
        erosion = self._model.calibration.erosion_mm
        values = [
            np.sort(made[analysed_mask(mask, erosion)])
            for index, (made, mask) in enumerate(zip(self.maps(score, smoothing), self._masks, strict=True))
            if index != without
        ]
        return rate_threshold(values, TARGET_FPR[point])

    def same_scans(self, score: str) -> bool:
        """Whether the model's own calibration rests on these scans: its statistics are then theirs.

        Statistics of as many other people differ by a third of a standard deviation.
        """
        own, these = self._model.calibration.score(score).statistics, self.statistics(score)
        if own.mean.shape != these.mean.shape:
            return False
        inside = np.mean(self._masks, axis=0) > 0.5
        return float(np.abs((own.mean - these.mean) / these.std)[inside].mean()) < _SAME


def rate_threshold(values: Sequence[np.ndarray], rate: float) -> float:
    """The least value that a share ``rate`` of the voxels lies above, every scan with the same weight.

    values: one sorted array per scan.
    """
    low, high = 0.0, max(float(v[-1]) for v in values)
    for _ in range(50):
        middle = (low + high) / 2
        above = np.mean([1 - np.searchsorted(v, middle, side="right") / len(v) for v in values])
        low, high = (middle, high) if above > rate else (low, middle)
    return high


def level_statistics(statistics: VoxelStatistics, shape: Sequence[int], level: int | None) -> VoxelStatistics:
    """Statistics of volumes, for a slice of depth 1 that lies at one of their levels; others unchanged."""
    if level is None or statistics.mean.shape == tuple(shape):
        return statistics
    part = slice(level, level + 1)
    return VoxelStatistics(statistics.mean[..., part], statistics.std[..., part])
