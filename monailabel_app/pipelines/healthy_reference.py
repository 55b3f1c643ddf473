"""Calibrated maps of a model for scans that its calibration has seen: standardised without their own person."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from monailabel_app.calibration.calibrated_map import analysed_mask, calibrated_map, scan_score, slice_score
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics

from .analysis import Analysis
from .healthy_thresholds import HealthySummary, HealthyThresholds, summarise
from .members import Without, combine_evidence, own_statistics
from .predict import AnomalyModel
from .shared_scans import NONE_SHARED, Shared, count_shared

_SAME = 0.1  # of a healthy standard deviation
Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]
Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """Items that are made when they are indexed; the last one is kept, because it is often asked for again."""

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        self._length, self._make = length, make
        self._last: tuple[int, Item] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self._last is None or self._last[0] != index:
            self._last = index, self._make(index)
        return self._last[1]


class HealthyReference:
    """What a model makes of the healthy scans of a set, and thereby its calibration with any one of them left out.

    scans: may be read from disk when indexed: no more than one of them is held. patients: whom each shows, by default
    somebody else each; all scans of a person are left out together. keep(name, make): the array of that name, made
    only where it was not kept before; by default in memory.
    """

    def __init__(
        self,
        model: AnomalyModel,
        scans: Sequence[Analysis],
        *,
        patients: Sequence[str] | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._model, self._scans = model, scans
        self._patients = list(patients) if patients is not None else [str(index) for index in range(len(scans))]
        self._keep = keep or _in_memory()
        self._moments: dict[str, HealthyMoments] = {}
        self._last: dict[str, tuple[tuple[int, ...], VoxelStatistics]] = {}
        self._same: dict[str, bool] = {}
        self._thresholds: dict[tuple[str, str], HealthyThresholds] = {}
        self._members = [
            HealthyReference(member, LazySequence(len(scans), lambda i, m=number: self._of_member(i, m)))
            for number, member in enumerate(model.members)
        ]

    def __len__(self) -> int:
        return len(self._scans)

    def of_patient(self, patient: str) -> tuple[int, ...]:
        """The indices of somebody's healthy scans."""
        return tuple(index for index, name in enumerate(self._patients) if name == patient)

    def statistics(self, score: str, without: Without = None) -> VoxelStatistics:
        """Voxel statistics of a score over all scans, or over all but some."""
        gone = _indices(without)
        if score not in self._moments:
            raws = LazySequence(len(self), lambda index: self.own_raw(score, index))
            masks = LazySequence(len(self), lambda index: self._scans[index].prepared.brain_mask)
            self._moments[score] = HealthyMoments(raws, masks, prior_scans=self._model.prior_scans)
        # Cases of one person follow each other, and every one asks again.
        if score not in self._last or self._last[score][0] != gone:
            self._last[score] = gone, self._moments[score].statistics(without=gone)
        return self._last[score][1]

    def raw(self, scan: Analysis, score: str, *, without: Without) -> np.ndarray:
        """The raw map of any scan; that of an ensemble rests on its members' statistics, which leave a scan out too."""
        if not self._members:
            return scan.raw(score)
        statistics = self._member_statistics(without)
        return combine_evidence(self._model, scan.prepared, scan.evidence.members, statistics)[score]

    def own_raw(self, score: str, index: int) -> np.ndarray:
        """The raw map of a healthy scan, made without that person's scans."""
        if not self._members:
            return self._scans[index].raw(score)
        without = self.of_patient(self._patients[index])
        return self._keep(f"raw-{score}-{index}", lambda: self.raw(self._scans[index], score, without=without))

    def _of_member(self, index: int, member: int) -> Analysis:
        scan = self._scans[index]
        return Analysis(scan.prepared, scan.evidence.members[member])

    def _member_statistics(self, without: Without) -> list[VoxelStatistics]:
        """Of every member; as its folder has them where its calibration did not see these scans."""
        own = own_statistics(self._model)
        return [
            reference.statistics(score, without) if reference.same_scans(score) else statistics
            for reference, score, statistics in zip(self._members, self._model.config.scores, own, strict=True)
        ]

    def map(self, score: str, smoothing: str, index: int) -> np.ndarray:
        """The calibrated map of a healthy scan, standardised with those of other people."""

        def make() -> np.ndarray:
            scan = self._scans[index]
            without = self.of_patient(self._patients[index])
            return self._calibrated(self.own_raw(score, index), scan, score, smoothing, without)

        return self._keep(f"map-{score}-{smoothing}-{index}", make)

    def maps(self, score: str, smoothing: str) -> Sequence[np.ndarray]:
        """The calibrated map of each scan, standardised with the others."""
        return LazySequence(len(self), lambda index: self.map(score, smoothing, index))

    def map_of(self, scan: Analysis, score: str, smoothing: str, *, without: Without) -> np.ndarray:
        """The calibrated map of any scan, with statistics that leave some healthy scans out."""
        return self._calibrated(self.raw(scan, score, without=without), scan, score, smoothing, without)

    def _calibrated(self, raw: np.ndarray, scan: Analysis, score: str, smoothing: str, without: Without) -> np.ndarray:
        return calibrated_map(
            raw,
            scan.prepared.brain_mask,
            self.statistics(score, without),
            score=score,
            smoothing=smoothing,
            erosion_mm=self._model.calibration.erosion_mm,
        )

    def summary(self, score: str, smoothing: str, index: int) -> HealthySummary:
        """What thresholds need of a healthy scan."""
        prepared = self._scans[index].prepared
        inside = analysed_mask(prepared.brain_mask, self._model.calibration.erosion_mm)
        of_scan = scan_score if self._model.levels is None else slice_score
        return summarise(self.map(score, smoothing, index), inside, prepared.spacing_mm, of_scan)

    def thresholds(self, score: str, smoothing: str) -> HealthyThresholds:
        """Of all scans, any of which can be left out."""
        if (score, smoothing) not in self._thresholds:
            made = [self.summary(score, smoothing, index) for index in range(len(self))]
            self._thresholds[score, smoothing] = HealthyThresholds(made, self._patients)
        return self._thresholds[score, smoothing]

    def threshold(self, score: str, smoothing: str, *, point: str = "balanced", without: Without = None) -> float:
        """The threshold that an operating point gets from all scans, or from all but some."""
        wanted = self._model.calibration.score(score).points[smoothing][point]
        return self.thresholds(score, smoothing).point(wanted, _indices(without))

    def same_scans(self, score: str) -> bool:
        """Whether the model's own calibration rests on these scans: its statistics are then theirs.

        Statistics of as many other people differ by a third of a standard deviation.
        """
        if score not in self._same:
            own, these = self._model.calibration.score(score).statistics, self.statistics(score)
            if own.mean.shape != these.mean.shape:
                self._same[score] = False
                return False
            inside = sum(scan.prepared.brain_mask.astype(np.float32) for scan in self._scans) / len(self) > 0.5
            self._same[score] = float(np.abs((own.mean - these.mean) / these.std)[inside].mean()) < _SAME
        return self._same[score]

    def shared(self, score: str) -> Shared:
        """How many of these scans the model's own calibration rests on, where it does not rest on just these."""
        own, count = self._model.calibration.score(score).statistics, self._model.calibration.healthy.get("scans")
        if not isinstance(count, int) or own.mean.shape != self._scans[0].prepared.brain_mask.shape:
            return NONE_SHARED
        maps = LazySequence(len(self), lambda index: self.own_raw(score, index))
        return count_shared(own, count, maps, (scan.prepared.brain_mask for scan in self._scans))


def without_own_person(
    model: AnomalyModel, scans: Sequence[Analysis], patients: Sequence[str] | None = None
) -> list[Analysis]:
    """The analyses of an ensemble with raw maps that do not rest on statistics of the same person.

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


def level_statistics(statistics: VoxelStatistics, shape: Sequence[int], level: int | None) -> VoxelStatistics:
    """Statistics of volumes, for a slice of depth 1 that lies at one of their levels; others unchanged."""
    if level is None or statistics.mean.shape == tuple(shape):
        return statistics
    part = slice(level, level + 1)
    return VoxelStatistics(statistics.mean[..., part], statistics.std[..., part])


def _indices(without: Without) -> tuple[int, ...]:
    if without is None:
        return ()
    return tuple(sorted(without)) if isinstance(without, Collection) else (int(without),)


def _in_memory() -> Keep:
    kept: dict[str, np.ndarray] = {}

    def keep(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in kept:
            kept[name] = make()
        return kept[name]

    return keep
