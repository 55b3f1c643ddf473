"""How well a model finds lesions, beside the two baselines: the same scans, voxels and metrics for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM, calibrated_map
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics
from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.images import read_volume
from monailabel_app.metrics.intervals import bootstrap_interval
from monailabel_app.metrics.voxelwise import ScoreHistogram, auroc, average_precision, best_dice, dice
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.types import PreparedVolume, Volume

from .analysis import Analysis
from .baselines import IntensityAtlas, atlas_z, intensity_z, smoothed_magnitude
from .implants import implant_first_fitting, list_shapes, plan_implants, standard_to_template
from .ixi import IxiScan
from .predict import AnomalyModel, PredictSettings, analyse, prepare

_BASELINE_SIGMAS_MM = (0.0, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Case:
    """A scan with ground truth. gt_mask and brain_mask: (x, y, z) bool, native. scan: index among the healthy ones."""

    volume: Volume
    gt_mask: np.ndarray
    brain_mask: np.ndarray
    scan: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """Pooled counts and per-case values of one detector."""

    name: str
    pooled: ScoreHistogram = field(default_factory=ScoreHistogram)
    per_case_ap: list[float] = field(default_factory=list)
    per_case_dice: list[float] = field(default_factory=list)

    def add(self, score_map: np.ndarray, case: Case, threshold: float | None) -> None:
        """Count one case on its native grid; ``threshold`` gives the Dice at the balanced operating point."""
        own = ScoreHistogram()
        own.add(score_map, case.gt_mask, case.brain_mask)
        self.pooled = self.pooled + own
        self.per_case_ap.append(average_precision(own))
        if threshold is not None:
            self.per_case_dice.append(dice((score_map > threshold) & case.brain_mask, case.gt_mask & case.brain_mask))

    def summary(self) -> dict[str, Any]:
        """AP, AUROC and best Dice (chosen with the labels: an upper bound) pooled over voxels; AP per case."""
        interval = bootstrap_interval(
            lambda values: float(np.nanmean(values)), np.array(self.per_case_ap), generator=np.random.default_rng(0)
        )
        return {
            "name": self.name,
            "average_precision": average_precision(self.pooled),
            "auroc": auroc(self.pooled),
            "best_dice_oracle": best_dice(self.pooled).dice,
            "mean_case_ap": float(np.nanmean(self.per_case_ap)),
            "mean_case_ap_interval": [interval.low, interval.high],
            "dice_at_balanced": float(np.nanmean(self.per_case_dice)) if self.per_case_dice else None,
            "cases": len(self.per_case_ap),
            "prevalence": self.pooled.prevalence,
        }


def implanted_cases(
    scans: Sequence[IxiScan],
    healthy: Sequence[Analysis],
    shapes_folder: Path,
    brain_mask: np.ndarray,
    template_affine: np.ndarray,
    *,
    per_scan: int,
    seed: int,
) -> Iterator[Case]:
    """Lesions of real shape implanted into raw healthy heads, one per case, placed through the scan's alignment."""
    shapes = list_shapes(shapes_folder)
    to_template = standard_to_template(brain_mask, template_affine)
    for plan in plan_implants(len(scans), len(shapes), per_scan, seed=seed):
        scan = scans[plan.scan]
        volume, brain = scan.volume(), scan.brain_mask()
        to_native_mm = np.linalg.inv(healthy[plan.scan].prepared.native_to_template) @ to_template
        image, gt_mask, shape = implant_first_fitting(volume, brain, plan, shapes, to_native_mm)
        details = {
            "contrast": plan.contrast,
            "volume_ml": float(gt_mask.sum()) * volume.voxel_volume_mm3 / 1000,
            "shape": shape.name.split("_")[0],
        }
        yield Case(replace(volume, data=image[None]), gt_mask, brain, plan.scan, details)


def stored_case(image: Path, gt_mask: Path) -> Case:
    """A stripped scan and its lesion mask from files; the brain is where the scan is not zero."""
    volume, labels = read_volume(image), read_volume(gt_mask)
    if labels.shape != volume.shape or not np.allclose(labels.affine, volume.affine, atol=1e-3):
        raise EvaluationFailed(
            f"expected the lesion mask on the grid of its scan {volume.shape}, got {labels.shape}; resample it first"
        )
    return Case(volume, labels.data[0] > 0.5, volume.data[0] != 0)


def evaluate_detection(
    model: AnomalyModel,
    atlas: IntensityAtlas,
    cases: Iterator[Case],
    *,
    healthy: Sequence[Analysis] = (),
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """A table of the model's scores at every smoothing and of both baselines at four, over all cases.

    healthy: the calibration scans in their order; a case made from one of them is standardised with the statistics
    of the others. Returns ``rows`` (summaries) and ``cases`` (details with the AP of each detector).
    """
    masks = [scan.prepared.brain_mask for scan in healthy]
    moments = {
        score: HealthyMoments([scan.raw(score) for scan in healthy], masks, prior_scans=model.prior_scans)
        for score in model.scores
        if healthy
    }
    rows: dict[str, Row] = {}
    listed = []
    for index, case in enumerate(cases):
        prepared = prepare(case.volume, model, device)
        scan = analyse(prepared, model, PredictSettings(device=device))
        entry = dict(case.details)
        for name, score_map, threshold in _detectors(model, atlas, scan, case, moments):
            row = rows.setdefault(name, Row(name))
            row.add(to_native(score_map, prepared), case, threshold)
            entry[name] = row.per_case_ap[-1]
        listed.append(entry)
        if progress is not None:
            progress(index + 1)
    if not rows:
        raise EvaluationFailed("expected at least one case to evaluate, got none")
    return {"rows": [row.summary() for row in rows.values()], "cases": listed}


def _detectors(
    model: AnomalyModel,
    atlas: IntensityAtlas,
    scan: Analysis,
    case: Case,
    moments: Mapping[str, HealthyMoments],
) -> Iterator[tuple[str, np.ndarray, float | None]]:
    prepared = scan.prepared
    for score in model.scores:
        raw, calibration = scan.raw(score), model.calibration.score(score)
        own = case.scan is not None and score in moments
        statistics = moments[score].statistics(without=case.scan) if own else calibration.statistics
        for smoothing in SMOOTHING_MM:
            made = _map(raw, prepared, statistics, score, smoothing, model.calibration.erosion_mm)
            yield f"{model.id} {score} {smoothing}", made, calibration.points[smoothing]["balanced"].threshold
    for sigma in _BASELINE_SIGMAS_MM:
        for name, z in (("intensity z", intensity_z(prepared)), ("atlas z", atlas_z(prepared, atlas))):
            yield f"{name}, {sigma:g} mm", smoothed_magnitude(z, prepared, sigma, model.calibration.erosion_mm), None


def _map(
    raw: np.ndarray,
    prepared: PreparedVolume,
    statistics: VoxelStatistics,
    score: str,
    smoothing: str,
    erosion_mm: float,
) -> np.ndarray:
    return calibrated_map(
        raw, prepared.brain_mask, statistics, score=score, smoothing=smoothing, erosion_mm=erosion_mm
    )
