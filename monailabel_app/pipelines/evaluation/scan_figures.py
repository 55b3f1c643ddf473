"""The figures of one model read by one protocol, from what each scan gave: the estimate and every resample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monailabel_app.metrics.case_histograms import aurocs, average_precisions, best_dices
from monailabel_app.metrics.patient_bootstrap import (
    expanded_level,
    limits,
    pooled_statistics,
    weighted_aurocs,
    weighted_means,
    weighted_ratio,
)
from monailabel_app.metrics.rodeo import rodeo_scores

Scans = Sequence[Mapping[str, Any]]
POINT = "balanced"  # the operating point that comparisons and verdicts are read at
POINTS = ("sensitive", "balanced", "specific", "bounded")
FEWEST_PATIENTS = 5
_OF_ONE_POINT = ("dice", "lesions", "detected", "false_positives", "false_ml", "marked_ml", "rodeo")
_HEALTHY = ("healthy_false_ml", "healthy_false_positives_per_scan")


@dataclass(frozen=True)
class Draws:
    """figures, points: (resamples + 1,) per figure, the estimate first. case_values: (cases,) per figure.

    scan_scores: of the cases and of the healthy scans, which may be none.
    """

    figures: Mapping[str, np.ndarray]
    points: Mapping[str, Mapping[str, np.ndarray]]
    case_values: Mapping[str, np.ndarray]
    scan_scores: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Patients:
    """Whose scans they are. weights, healthy_weights: of ``patient_weights``, (resamples + 1, scans)."""

    cases: Sequence[str]
    healthy: Sequence[str]
    weights: np.ndarray
    healthy_weights: np.ndarray

    def behind(self, name: str) -> int:
        """How many people a figure rests on; for the scan AUROC those of the smaller group."""
        ill, well = len(set(self.cases)), len(set(self.healthy))
        return well if name in _HEALTHY else min(ill, well) if name == "scan_auroc" else ill


def draw_figures(protocol: Mapping[str, Any], counts: np.ndarray, patients: Patients) -> Draws:
    """Every figure that the scans of a protocol allow; what no scan holds is left out. counts: (cases, 2, BINS)."""
    cases, healthy, weights = protocol["cases"], protocol["healthy"], patients.weights
    pooled = pooled_statistics(weights, counts, average_precisions, aurocs, best_dices)
    precisions = average_precisions(counts)
    voxels = counts.sum(axis=(1, 2), dtype=np.float64)
    scores, healthy_scores = column(cases, "scan_score"), column(healthy, "scan_score")
    figures = dict(zip(("pooled_ap", "pooled_auroc", "best_dice_oracle"), pooled, strict=True)) | {
        "mean_case_ap": weighted_means(weights, precisions),
        "prevalence": weighted_ratio(weights, counts[:, 0].sum(axis=1), voxels),
        "analysed_share": weighted_means(weights, column(cases, "analysed_share")),
    }
    if len(healthy):
        figures["scan_auroc"] = weighted_aurocs(weights, scores, patients.healthy_weights, healthy_scores)
    named = points_of(protocol)
    return Draws(
        figures,
        {name: _point_figures(protocol, name, patients) for name in named},
        {"mean_case_ap": precisions, **({"dice": at_point(cases, POINT, "dice")} if POINT in named else {})},
        (scores, healthy_scores),
    )


def points_of(protocol: Mapping[str, Any]) -> list[str]:
    """The operating points that the cases of a protocol were measured at, in the usual order."""
    found = {name: None for case in protocol["cases"] for name in _points(case)}
    return [name for name in POINTS if name in found] + [name for name in found if name not in POINTS]


def column(scans: Scans, key: str) -> np.ndarray:
    """(scans,) float64, NaN where a scan has no value."""
    return np.array([_number(scan.get(key)) for scan in scans], dtype=np.float64)


def at_point(scans: Scans, point: str, *keys: str) -> np.ndarray:
    """(scans,) float64: an entry of every scan at an operating point, NaN where there is none."""
    values = []
    for scan in scans:
        entry: Any = _points(scan).get(point)
        for key in keys:
            entry = entry.get(key) if isinstance(entry, Mapping) else None
        values.append(_number(entry))
    return np.array(values, dtype=np.float64)


def figure(values: np.ndarray, people: int) -> dict[str, Any]:
    """``value`` and ``interval`` of resampled values, expanded for the number of people; None below 5 of them."""
    low, high = limits(values, expanded_level(people)) if people >= FEWEST_PATIENTS else (np.nan, np.nan)
    return {"value": float(values[0]), "interval": [low, high] if np.isfinite([low, high]).all() else None}


def _point_figures(protocol: Mapping[str, Any], point: str, patients: Patients) -> dict[str, np.ndarray]:
    cases, healthy, weights = protocol["cases"], protocol["healthy"], patients.weights
    errors = at_point(cases, point, "marked_ml") - column(cases, "volume_ml")
    sums = [at_point(cases, point, "rodeo", key) for key in ("matched", "over", "missed", "localisation", "shape")]
    figures = {
        "dice": weighted_means(weights, at_point(cases, point, "dice")),
        "recall": _ratio(weights, at_point(cases, point, "detected"), at_point(cases, point, "lesions")),
        "false_positives_per_scan": weighted_means(weights, at_point(cases, point, "false_positives")),
        "false_ml": weighted_means(weights, at_point(cases, point, "false_ml")),
        "volume_error_ml": weighted_means(weights, np.abs(errors)),
        "volume_bias_ml": weighted_means(weights, errors),
    }
    if np.isfinite(sums).any():
        found = rodeo_scores(*(weights @ np.nan_to_num(values) for values in sums))
        figures |= {"rodeo" if name == "total" else f"rodeo_{name}": values for name, values in found.items()}
    if len(healthy):
        figures |= {
            name: weighted_means(patients.healthy_weights, at_point(healthy, point, key))
            for name, key in zip(_HEALTHY, ("false_ml", "false_positives"), strict=True)
        }
    return {name: values for name, values in figures.items() if np.isfinite(values[0])}


def _points(scan: Mapping[str, Any]) -> Mapping[str, Any]:
    """A scan's operating points; a record of one point alone names none."""
    if "points" in scan:
        return scan["points"]
    return {POINT: {key: scan[key] for key in _OF_ONE_POINT if key in scan}}


def _ratio(weights: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    known = np.isfinite(above) & np.isfinite(below)
    return weighted_ratio(weights, np.where(known, above, 0), np.where(known, below, 0))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan
