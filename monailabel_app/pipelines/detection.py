"""Detection counted on native scans, and lesions implanted into raw healthy heads: for studies outside `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.metrics.intervals import bootstrap_interval
from monailabel_app.metrics.voxelwise import ScoreHistogram, auroc, average_precision, best_dice, dice
from monailabel_app.types import Volume

from .analysis import Analysis
from .implants import implant_first_fitting, list_shapes, plan_implants, standard_to_template
from .ixi import IxiScan


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
