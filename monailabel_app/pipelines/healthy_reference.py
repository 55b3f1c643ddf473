"""Calibrated maps of a model for scans that its calibration has seen: standardised without their own person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from monailabel_app.calibration.calibrated_map import analysed_mask, calibrated_map
from monailabel_app.calibration.operating_points import TARGET_FPR
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics

from .analysis import Analysis
from .members import Without, combine_evidence, own_statistics
from .predict import AnomalyModel

_SAME = 0.1  # of a healthy standard deviation


class HealthyReference:
    """What a model makes of the healthy scans of a set, and thereby its calibration with any one of them left out."""

    def __init__(self, model: AnomalyModel, scans: Sequence[Analysis]) -> None:
        self._model, self._scans = model, list(scans)
        self._masks = [scan.prepared.brain_mask for scan in self._scans]
        self._moments: dict[str, HealthyMoments] = {}
        self._last: dict[str, tuple[Without, VoxelStatistics]] = {}
        self._same: dict[str, bool] = {}
        self._maps: dict[tuple[str, str], list[np.ndarray]] = {}
        self._members = [
            HealthyReference(member, [Analysis(scan.prepared, scan.evidence.members[index]) for scan in self._scans])
            for index, member in enumerate(model.members)
        ]

    def __len__(self) -> int:
        return len(self._scans)

    def statistics(self, score: str, without: Without = None) -> VoxelStatistics:
        """Voxel statistics of a score over all scans, or over all but one."""
        if score not in self._moments:
            raws = [self.raw(scan, score, without=index) for index, scan in enumerate(self._scans)]
            self._moments[score] = HealthyMoments(raws, self._masks, prior_scans=self._model.prior_scans)
        # Cases of one person follow each other, and every one asks again.
        if score not in self._last or self._last[score][0] != without:
            self._last[score] = without, self._moments[score].statistics(without=without)
        return self._last[score][1]

    def raw(self, scan: Analysis, score: str, *, without: Without) -> np.ndarray:
        """The raw map of any scan; that of an ensemble rests on its members' statistics, which leave a scan out too."""
        if not self._members:
            return scan.raw(score)
        statistics = self._member_statistics(without)
        return combine_evidence(self._model, scan.prepared, scan.evidence.members, statistics)[score]

    def _member_statistics(self, without: Without) -> list[VoxelStatistics]:
        """Of every member; as its folder has them where its calibration did not see these scans."""
        own = own_statistics(self._model)
        return [
            reference.statistics(score, without) if reference.same_scans(score) else statistics
            for reference, score, statistics in zip(self._members, self._model.config.scores, own, strict=True)
        ]

    def maps(self, score: str, smoothing: str) -> list[np.ndarray]:
        """The calibrated map of each scan, standardised with the others."""
        if (score, smoothing) not in self._maps:
            self._maps[score, smoothing] = [
                self.map_of(scan, score, smoothing, without=index) for index, scan in enumerate(self._scans)
            ]
        return self._maps[score, smoothing]

    def map_of(self, scan: Analysis, score: str, smoothing: str, *, without: Without) -> np.ndarray:
        """The calibrated map of any scan, with statistics that leave one healthy scan out."""
        return calibrated_map(
            self.raw(scan, score, without=without),
            scan.prepared.brain_mask,
            self.statistics(score, without),
            score=score,
            smoothing=smoothing,
            erosion_mm=self._model.calibration.erosion_mm,
        )

    def threshold(self, score: str, smoothing: str, *, point: str = "balanced", without: Without = None) -> float:
        """The threshold that an operating point gets from all scans, or from all but one."""
        erosion = self._model.calibration.erosion_mm
        left_out = {without} if without is None or isinstance(without, int) else set(without)
        values = [
            np.sort(made[analysed_mask(mask, erosion)])
            for index, (made, mask) in enumerate(zip(self.maps(score, smoothing), self._masks, strict=True))
            if index not in left_out
        ]
        return rate_threshold(values, TARGET_FPR[point])

    def same_scans(self, score: str) -> bool:
        """Whether the model's own calibration rests on these scans: its statistics are then theirs.

        Statistics of as many other people differ by a third of a standard deviation.
        """
        if score not in self._same:
            own, these = self._model.calibration.score(score).statistics, self.statistics(score)
            inside = np.mean(self._masks, axis=0) > 0.5
            self._same[score] = own.mean.shape == these.mean.shape and (
                float(np.abs((own.mean - these.mean) / these.std)[inside].mean()) < _SAME
            )
        return self._same[score]


def without_own_person(
    model: AnomalyModel, scans: Sequence[Analysis], patients: Sequence[str] | None = None
) -> list[Analysis]:
    """An ensemble's analyses of healthy scans with raw maps that do not rest on statistics of the same person.

    patients: whom each scan shows, by default somebody else each.
    """
    reference = HealthyReference(model, scans)
    names = list(patients) if patients is not None else list(range(len(scans)))
    made = []
    for scan, name in zip(scans, names, strict=True):
        same = [index for index, other in enumerate(names) if other == name]
        maps = {score: reference.raw(scan, score, without=same) for score in scan.evidence.maps}
        made.append(Analysis(scan.prepared, replace(scan.evidence, maps=maps)))
    return made


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
