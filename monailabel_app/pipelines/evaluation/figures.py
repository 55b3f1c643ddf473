"""The table's figures from the counts of every model on a set, with intervals over patients and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.case_histograms import average_precisions
from monailabel_app.metrics.patient_bootstrap import (
    limits,
    patient_weights,
    pooled_precisions,
    weighted_aurocs,
    weighted_means,
    weighted_ratio,
)

from .measure import Measurement

FIGURES = (
    "pooled_ap",
    "mean_case_ap",
    "best_dice_oracle",
    "dice",
    "recall",
    "false_positives_per_scan",
    "scan_auroc",
    "healthy_false_ml",
    "healthy_false_positives_per_scan",
    "analysed_share",
)
COMPARED = ("pooled_ap", "mean_case_ap", "dice")
# What every row is compared with: the name of the comparison, and the method that it means.
REFERENCES = {"atlas": "atlas_zscore", "ddpm": "ddpm"}
_FEWEST_PATIENTS = 5


def set_rows(measurements: Sequence[Measurement], modality: str, *, resamples: int = 2000) -> list[dict[str, Any]]:
    """One row per model and protocol on one set, best pooled average precision first.

    modality: of the set's scans; of several models of a reference method that one is the reference which was made for
    it. Every row is resampled with the same draws of patients. Raises EvaluationFailed when the models were not
    measured on the same cases.
    """
    if not measurements:
        return []
    first = measurements[0].record
    cases, healthy = _scans(first, "cases"), _scans(first, "healthy")
    for other in measurements[1:]:
        if other.record["set"]["key"] != first["set"]["key"] or _scans(other.record, "cases") != cases:
            raise EvaluationFailed(
                f"expected every model on the same cases of {first['set']['name']}, got others for "
                f"{other.record['model']['id']}; measure it again with --again"
            )
    weights = patient_weights([p for _, p in cases], [p for _, p in healthy], resamples=resamples)
    enough = len({patient for _, patient in cases}) >= _FEWEST_PATIENTS
    rows, drawn = [], {}
    for measurement in measurements:
        record = measurement.record
        for name, protocol in record["protocols"].items():
            values = _figures(protocol, measurement.counts[name], *weights)
            drawn[record["model"]["id"], name] = values
            rows.append(_row(record, name, protocol, values, enough))
    references = {
        key: found
        for key, method in REFERENCES.items()
        if (found := _reference([m.record for m in measurements], method, modality)) is not None
    }
    for row in rows:
        mine = drawn[row["model"], row["protocol"]]
        row["differences"] = {
            key: _differences(mine, drawn[found], enough) | {"reference": found[0]}
            for key, found in references.items()
            if found != (row["model"], row["protocol"])
        }
    return sorted(rows, key=lambda row: -_number(row["figures"]["pooled_ap"]["value"]))


def _scans(record: Mapping[str, Any], kind: str) -> list[tuple[str, str]]:
    protocol = next(iter(record["protocols"].values()))
    return [(scan["id"], scan["patient"]) for scan in protocol[kind]]


def _figures(
    protocol: Mapping[str, Any], counts: np.ndarray, weights: np.ndarray, healthy_weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Every figure for the estimate and every resample, (resamples + 1,)."""
    cases, healthy = protocol["cases"], protocol["healthy"]

    def column(scans: Sequence[Mapping[str, Any]], key: str) -> list[float]:
        return [np.nan if scan[key] is None else float(scan[key]) for scan in scans]

    pooled_ap, best = pooled_precisions(weights, counts)
    figures = {
        "pooled_ap": pooled_ap,
        "mean_case_ap": weighted_means(weights, average_precisions(counts)),
        "best_dice_oracle": best,
        "dice": weighted_means(weights, column(cases, "dice")),
        "recall": weighted_ratio(weights, column(cases, "detected"), column(cases, "lesions")),
        "false_positives_per_scan": weighted_means(weights, column(cases, "false_positives")),
        "analysed_share": weighted_means(weights, column(cases, "analysed_share")),
    }
    if healthy:
        scores = column(cases, "scan_score"), column(healthy, "scan_score")
        figures |= {
            "scan_auroc": weighted_aurocs(weights, scores[0], healthy_weights, scores[1]),
            "healthy_false_ml": weighted_means(healthy_weights, column(healthy, "false_ml")),
            "healthy_false_positives_per_scan": weighted_means(healthy_weights, column(healthy, "false_positives")),
        }
    return figures


def _row(
    record: Mapping[str, Any], name: str, protocol: Mapping[str, Any], values: Mapping[str, np.ndarray], enough: bool
) -> dict[str, Any]:
    return {
        "set": record["set"]["name"],
        "model": record["model"]["id"],
        "hash": record["model"]["hash"],
        "method": record["model"]["method"],
        "modality": record["model"]["modality"],
        "protocol": name,
        "score": protocol["score"],
        "smoothing": protocol["smoothing"],
        "calibration": protocol["calibration"],
        "leave_one_out": protocol["leave_one_out"],
        "default": name.startswith(record["default"]),
        "cases": len(protocol["cases"]),
        "healthy": len(protocol["healthy"]),
        "seconds_to_analyse": record["seconds_to_analyse"],
        "processor_seconds_to_analyse": record["processor_seconds_to_analyse"],
        "seconds_to_prepare": record["seconds_to_prepare"],
        "peak_memory_mb": record["peak_memory_mb"],
        "figures": {key: _figure(values[key], enough) for key in FIGURES if key in values},
    }


def _figure(values: np.ndarray, enough: bool) -> dict[str, Any]:
    return {"value": float(values[0]), "interval": list(limits(values)) if enough else None}


def _differences(mine: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], enough: bool) -> dict[str, Any]:
    return {key: _figure(mine[key] - other[key], enough) for key in COMPARED}


def _reference(records: Sequence[Mapping[str, Any]], method: str, modality: str) -> tuple[str, str] | None:
    """Model and protocol that stand for a method: its default score with its own calibration."""
    found = [record for record in records if record["model"]["method"] == method]
    found.sort(key=lambda record: record["model"]["modality"] != modality)
    return (found[0]["model"]["id"], f"{found[0]['default']}own") if found else None


def _number(value: float) -> float:
    return -1.0 if value != value else value
