"""One analysed scan read by the protocols of a model: calibrated maps, masks at every threshold, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from monailabel_app.calibration.background import matched
from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score, slice_score
from monailabel_app.calibration.operating_points import OperatingPoint
from monailabel_app.metrics.case_histograms import count_voxels
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.metrics.rodeo import rodeo_boxes
from monailabel_app.metrics.voxelwise import dice
from monailabel_app.postprocessing.boxes import bounding_box
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.types import CONNECTIVITY_26

from ..analysis import Analysis
from ..healthy_reference import HealthyReference, LazySequence, level_statistics
from ..healthy_thresholds import HealthySummary, HealthyThresholds
from ..predict import AnomalyModel
from ..shared_scans import NONE_SHARED, Shared
from .analyses import costs_of, loaded_model, read_analysis
from .cases import CaseReference, PreparedCase, is_cut, on_grid_of
from .store import Costs, keep_in

MIN_VOLUME_ML = 0.1
_VOXEL_MM3 = 8.0  # of the model grid
FEWEST_HEALTHY = 5


@dataclass(frozen=True)
class Protocol:
    """One way to read a model's maps. calibration: ``own`` or ``set`` (the healthy scans of the set itself).

    left_out: the model was calibrated on the set's healthy scans, so everybody meets statistics and thresholds without
    their own scans.
    """

    score: str
    smoothing: str
    calibration: str
    left_out: bool = False

    @property
    def name(self) -> str:
        """``signed/standard/own``."""
        return f"{self.score}/{self.smoothing}/{self.calibration}"

    @property
    def by_set(self) -> bool:
        """Whether statistics and thresholds come from the healthy scans of the set."""
        return self.left_out or self.calibration == "set"


@dataclass(frozen=True)
class Levers:
    """What a protocol reads one scan with: thresholds by operating point and of the tails, healthy scan scores."""

    points: Mapping[str, float]
    tails: tuple[float, ...]
    healthy_scores: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """What a model's own calibration says of a score: operating points, tails and healthy scan scores.

    shared: how many of the set's healthy scans it rests on, where it does not rest on just these.
    """

    points: Mapping[str, OperatingPoint]
    tails: tuple[float, ...]
    scan_scores: tuple[float, ...]
    shared: Shared = NONE_SHARED

    def levers(self, thresholds: HealthyThresholds | None = None, without: tuple[int, ...] = ()) -> Levers:
        """What a scan is read with.

        thresholds: of the set's healthy scans, for a protocol by them; without: the indices of those of the same
        person.
        """
        if thresholds is None:
            points = {name: point.threshold for name, point in self.points.items()}
            return Levers(points, self.tails, self.scan_scores)
        points = {name: thresholds.point(point, without) for name, point in self.points.items()}
        return Levers(points, thresholds.tails(without), thresholds.scores(without))


@dataclass(frozen=True)
class ReadingPlan:
    """What the reading of one model on one set needs. name: tells it from others; healthy: the set's, in order."""

    name: str
    folder: Path
    model_hash: str
    cache: Path
    keep: Path
    healthy: tuple[CaseReference, ...]
    level: int | None
    calibration: str


@dataclass(frozen=True)
class Reading:
    """One scan by one protocol. entry: its record; counts: (2, BINS) int32, lesion voxels first."""

    entry: dict[str, Any]
    counts: np.ndarray


class Reader:
    """A model and what it makes of a set's healthy scans."""

    def __init__(self, plan: ReadingPlan) -> None:
        self.plan = plan
        self.model: AnomalyModel = loaded_model(plan.folder, plan.model_hash).with_calibration(plan.calibration)
        self.reference: HealthyReference | None = None
        if len(plan.healthy) >= FEWEST_HEALTHY:
            scans = LazySequence(
                len(plan.healthy), lambda index: read_analysis(self.model, plan.healthy[index], plan.cache)
            )
            patients = [case.patient for case in plan.healthy]
            self.reference = HealthyReference(self.model, scans, patients=patients, keep=keep_in(plan.keep))

    def protocols(self, scores: Sequence[str], smoothings: Sequence[str]) -> dict[Protocol, Known]:
        """How the maps of these scores are read: with the model's calibration, and beside it with the set's own."""
        found = {}
        for score in scores:
            same = self.reference is not None and self.reference.same_scans(score)
            shared = self.reference.shared(score) if self.reference is not None and not same else NONE_SHARED
            calibration = self.model.calibration.score(score)
            for smoothing in smoothings:
                known = Known(
                    dict(calibration.points[smoothing]),
                    tuple(calibration.tails.get(smoothing, ())),
                    tuple(calibration.scan_scores[smoothing]),
                    shared,
                )
                found[Protocol(score, smoothing, "own", same)] = known
                if self.reference is not None and not same:
                    found[Protocol(score, smoothing, "set")] = known
        return found

    def summary(self, protocol: Protocol, index: int) -> HealthySummary:
        """What thresholds need of a healthy scan."""
        return self.reference.summary(protocol.score, protocol.smoothing, index)

    def read(
        self, case: CaseReference, levers: Mapping[Protocol, Levers], healthy: int | None = None
    ) -> tuple[dict[str, Reading], Costs, float]:
        """A scan by several protocols, and what analysing and (seconds) preparing it took.

        healthy: its index among the set's healthy scans; None for a case.
        """
        own = any(not protocol.by_set for protocol in levers)
        scan, loaded = read_analysis(self.model, case, self.plan.cache, own=own), case.load()
        read = {}
        for protocol, with_these in levers.items():
            values = self.calibrated(loaded, scan, protocol, healthy)
            entry, counts = self._count(loaded, scan, values, with_these, healthy is not None)
            read[protocol.name] = Reading(entry, counts)
        return read, costs_of(self.model, case, self.plan.cache), loaded.seconds

    def calibrated(
        self, case: PreparedCase, scan: Analysis, protocol: Protocol, healthy: int | None = None
    ) -> np.ndarray:
        """The calibrated map of a scan on the grid that was analysed."""
        if protocol.by_set:
            if healthy is not None:
                return self.reference.map(protocol.score, protocol.smoothing, healthy)
            without = self.reference.of_patient(case.patient)
            return self.reference.map_of(scan, protocol.score, protocol.smoothing, without=without)
        known, erosion_mm = self.model.calibration.score(protocol.score), self.model.calibration.erosion_mm
        mask = scan.prepared.brain_mask
        statistics = level_statistics(known.statistics, mask.shape, self.plan.level)
        about = {"score": protocol.score, "smoothing": protocol.smoothing, "erosion_mm": erosion_mm}
        values = calibrated_map(scan.raw(protocol.score), mask, statistics, **about)
        return matched(values, mask, known, **about)[0]

    def _count(
        self, case: PreparedCase, scan: Analysis, values: np.ndarray, levers: Levers, healthy: bool
    ) -> tuple[dict[str, Any], np.ndarray]:
        score = scan_score(values) if self.model.levels is None else slice_score(values)
        on_grid = np.maximum(on_grid_of(case, values, scan.prepared), 0)
        spacing = tuple(float(size) for size in np.linalg.norm(case.prepared.model_affine[:3, :3], axis=0))
        voxel_ml = float(np.prod(spacing)) / 1000
        truth = case.gt_mask
        entry: dict[str, Any] = {
            "id": case.id,
            "patient": case.patient,
            "attributes": dict(case.attributes),
            "scan_score": score,
            "p_value": rank_p_value(score, levers.healthy_scores),
            "tails": levers.tails,
        }
        if not healthy:
            looked_at = on_grid_of(case, scan.prepared.brain_mask, scan.prepared) > 0.5
            entry |= {
                **case.details,
                "volume_ml": float(truth.sum()) * voxel_ml,
                "analysed_share": float(looked_at[truth].mean()) if truth.any() else None,
            }
        points = {}
        outlined = delineated(values, scan.prepared.spacing_mm)
        for name, threshold in levers.points.items():
            mask = marked(case, scan, outlined, threshold)
            point: dict[str, Any] = {"threshold": threshold, "marked_ml": float(mask.sum()) * voxel_ml}
            inside = mask if healthy else mask & case.counted
            lesions = count_lesions(inside, truth)
            false = {
                "false_positives": lesions.predicted if healthy else lesions.false_positives,
                "false_ml": float((inside & ~truth).sum()) * voxel_ml,
            }
            if not healthy:
                point |= {
                    "dice": dice(inside, truth) if truth.any() else None,
                    "lesions": lesions.lesions,
                    "detected": lesions.detected,
                    "rodeo": rodeo_boxes(inside, truth, spacing).to_json(),
                }
            points[name] = point | false
        entry["points"] = points
        entry |= self._froc(case, scan, outlined, levers.tails, healthy)
        return entry, count_voxels(on_grid, truth, case.counted)

    def _froc(
        self, case: PreparedCase, scan: Analysis, outlined: np.ndarray, tails: Sequence[float], healthy: bool
    ) -> dict[str, Any]:
        """Lesions found and false alarms at thresholds of the same healthy rates for every model."""
        detected, false_positives = [], []
        lesions, _ = ndimage.label(case.gt_mask, structure=CONNECTIVITY_26)
        kept = np.ones_like(case.gt_mask) if healthy else case.counted
        for threshold in tails:
            if is_cut(case, scan.prepared):
                counts = count_lesions(marked(case, scan, outlined, threshold) & kept, case.gt_mask)
                detected.append(counts.detected)
                false_positives.append(counts.false_positives)
            else:
                found = _froc_point(outlined * scan.prepared.brain_mask, threshold, lesions, kept)
                detected.append(found[0])
                false_positives.append(found[1])
        if healthy:
            return {"froc_false_positives": false_positives}
        return {"froc": {"detected": detected, "false_positives": false_positives}}


def _froc_point(outlined: np.ndarray, threshold: float, lesions: np.ndarray, kept: np.ndarray) -> tuple[int, int]:
    """Lesions detected and false positives, as ``count_lesions`` has them, of what a threshold marks in a map.

    lesions: (X, Y, Z) components of the truth, numbered. kept: (X, Y, Z) bool, what of the mask is counted. A dozen
    thresholds per scan are counted like this: in the box of what is marked, and labelled once where that is enough.
    """
    above = outlined > threshold
    box = bounding_box(above)
    if box is None:
        return 0, 0
    labels, count = ndimage.label(above[box], structure=CONNECTIVITY_26)
    large = np.bincount(labels.ravel(), minlength=count + 1) * _VOXEL_MM3 >= MIN_VOLUME_ML * 1000
    large[0] = False
    mask = large[labels]
    if (mask & ~kept[box]).any():  # what is cut off may divide a component
        mask &= kept[box]
        labels, count = ndimage.label(mask, structure=CONNECTIVITY_26)
        large = np.arange(count + 1) > 0
    truth = lesions[box]
    touching = np.zeros(count + 1, dtype=bool)
    touching[labels[mask & (truth > 0)]] = True
    return len(np.unique(truth[mask & (truth > 0)])), int((large & ~touching).sum())


def marked(case: PreparedCase, scan: Analysis, outlined: np.ndarray, threshold: float) -> np.ndarray:
    """What a threshold marks in a map of ``delineated``, (X, Y, Z) bool on the grid of the case: the product's mask."""
    prepared = scan.prepared
    mask, _ = find_lesions(
        outlined,
        prepared.brain_mask,
        prepared.model_affine,
        threshold=threshold,
        min_volume_mm3=MIN_VOLUME_ML * 1000,
    )
    return on_grid_of(case, mask, prepared) > 0.5
