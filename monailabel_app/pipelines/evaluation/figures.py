"""evaluation.json: every model on every set with intervals, thresholds, curves, differences and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from monailabel_app import __version__
from monailabel_app.calibration.drift import rank_drift
from monailabel_app.calibration.operating_points import TARGET_FPR
from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.case_histograms import precision_recall
from monailabel_app.metrics.froc import froc_curve
from monailabel_app.metrics.patient_bootstrap import patient_weights
from monailabel_app.types import to_json

from ..shipped_models import DEFAULTS
from .differences import REFERENCES, default_protocol, differences, reading_of, references, verdict
from .measure import Measurement
from .scan_figures import POINT, Draws, Patients, at_point, column, draw_figures, figure, points_of
from .thresholds import mean_threshold, side_by_side

VERSION = 1
RESAMPLES = 2000
EXPLAINED = {
    "figures": "Voxels of the brain on the model grid (2 mm), of all cases together. AP: average precision, to be read "
    "beside the prevalence, which is the AP of chance. Best Dice knows the labels (oracle): the best that one "
    "threshold on the whole map gives; the masks in use are outlined besides and can be better. Scan "
    "AUROC: chance that a scan with lesions scores above a healthy one. Brackets: 95 % bootstrap over "
    "patients, percentiles expanded for their number; none with fewer than 5 of them.",
    "points": "Operating points are chosen on healthy scans. Dice is the mean over cases; recall and false positives "
    "count 26-connected components, predicted ones below 0.1 ml dropped. Volume error: marked minus true volume, "
    "without its sign; bias: with it. RoDeO: boxes of predicted and true lesions matched one to one.",
    "healthy_point": "Dice of voxels at the balanced operating point, neither outlined nor small components removed, "
    "mean over cases.",
    "healthy_quantile": "The same at the value that 0.5 % of healthy voxels exceed: of the set's healthy scans, or, "
    "where it has none, of those that calibrated the model.",
    "label_tuned": "The same at the threshold that was best on labelled scans of other patients: of the set's tuning "
    "split, or of the other of two random halves of the patients. For comparison with papers only: without labels it "
    "is out of reach. Its interval does not know that the threshold was chosen.",
    "calibration": "own: as the model comes; site: made on a site's healthy scans; set: made on the healthy scans of "
    "this set. Who calibrated a model is judged with statistics and thresholds without that person.",
    "differences": "Model minus baseline on the same patients. p_value: paired permutation over patients of the values "
    "of the cases (pooled figures have none), of the ranks for the scan AUROC. Not corrected for the number of rows.",
    "froc": "Lesion recall and false positives per scan with lesions, at thresholds of equal rates on healthy scans.",
}


def evaluation_record(
    measurements: Sequence[Measurement],
    *,
    tuning: Sequence[Measurement] = (),
    failed: Iterable[Mapping[str, str]] = (),
    command: str = "",
    resamples: int = RESAMPLES,
    **more: Any,
) -> dict[str, Any]:
    """All sets as plain JSON, in the order in which they appear.

    tuning: the same models on the tuning split of a set of the same name; without one the label-tuned threshold is
    cross-fitted. failed: what could not be measured. more: further entries beside these. Raises EvaluationFailed when
    the models of a set were not measured on the same cases.
    """
    sets: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        about = measurement.record["set"]
        sets.setdefault((about["name"], str(about.get("split") or "")), []).append(measurement)
    models = {m.record["model"]["id"]: dict(m.record["model"]) for m in measurements}
    made = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "app_version": __version__,
        "command": command,
        "models": models,
    }
    entries = [set_entry(found, tuning=tuning, resamples=resamples) for found in sets.values()]
    return to_json(
        {
            "version": VERSION,
            "made": made,
            "resamples": resamples,
            "protocols_explained": EXPLAINED,
            **more,
            "sets": entries,
            "failed": [dict(item) for item in failed],
        }
    )


def set_entry(
    measurements: Sequence[Measurement], *, tuning: Sequence[Measurement] = (), resamples: int = RESAMPLES
) -> dict[str, Any]:
    """One set with its rows, curves and examples; NaN where a figure does not exist."""
    about = measurements[0].record["set"]
    modality = about.get("modality") or measurements[0].record["model"]["modality"]
    cases, healthy = _scans(measurements[0], "cases"), _scans(measurements[0], "healthy")
    rows = set_rows(measurements, modality, tuning=tuning, resamples=resamples)
    return {
        "name": about["name"],
        "title": about.get("title") or about["name"],
        "modality": modality,
        "split": about.get("split"),
        "key": about["key"],
        "licence": about.get("licence", ""),
        "cases": len(cases),
        "patients": len({patient for _, patient in cases}),
        "healthy": len(healthy),
        "prevalence": rows[0]["figures"]["prevalence"]["value"],
        "lost_on_grid": lost_on_grid(measurements[0]),
        "skipped": _skipped(measurements),
        "rows": rows,
        "default_model": DEFAULTS.get(f"{modality} slices" if about.get("slices") else modality),
        "curves": {m.record["model"]["id"]: _curves(m) for m in measurements},
        "distributions": {m.record["model"]["id"]: _distributions(m) for m in measurements},
        "examples": [example for m in measurements for example in _examples(m)],
    }


def set_rows(
    measurements: Sequence[Measurement],
    modality: str,
    *,
    tuning: Sequence[Measurement] = (),
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """One row per model and protocol on one set, best pooled average precision first.

    modality: of the set's scans; of several models of a reference method that one is the reference which was made for
    it. Every row is resampled with the same draws of patients. Raises EvaluationFailed when the models were not
    measured on the same cases.
    """
    if not measurements:
        return []
    first = measurements[0].record
    cases, healthy = _scans(measurements[0], "cases"), _scans(measurements[0], "healthy")
    for other in measurements[1:]:
        same = _scans(other, "cases") == cases and _scans(other, "healthy") == healthy
        if other.record["set"]["key"] != first["set"]["key"] or not same:
            raise EvaluationFailed(
                f"expected every model on the same cases of {first['set']['name']}, got others for "
                f"{other.record['model']['id']}; measure it again with --again"
            )
    people, well = [p for _, p in cases], [p for _, p in healthy]
    patients = Patients(people, well, *patient_weights(people, well, resamples=resamples))
    draws: dict[tuple[str, str], Draws] = {}
    rows = []
    for measurement in measurements:
        model = measurement.record["model"]["id"]
        for name, protocol in measurement.record["protocols"].items():
            draws[model, name] = draw_figures(protocol, measurement.counts[name], patients)
            rows.append(_row(measurement, name, draws[model, name], patients, tuning))
    compared = references([m.record for m in measurements], modality, draws)
    for row in rows:
        mine = row["model"], row["protocol"]
        readings = {key: reading_of(record, row["calibration"]["kind"]) for key, record in compared.items()}
        # The best baseline is one of those compared already.
        found = {
            reading: differences(draws[mine], draws[reading], patients, reading[0])
            for reading in dict.fromkeys(readings.values())
            if reading != mine
        }
        row["differences"] = {
            key: found[reading]
            for key, reading in readings.items()
            if reading in found and (reading[0] != row["model"] or key in REFERENCES)
        }
        row["verdict"] = verdict(row, len(set(people)))
    return sorted(rows, key=lambda row: -_or_less(row["figures"]["pooled_ap"]["value"]))


def _row(
    measurement: Measurement, name: str, draws: Draws, patients: Patients, tuning: Sequence[Measurement]
) -> dict[str, Any]:
    record, protocol = measurement.record, measurement.record["protocols"][name]
    model = record["model"]
    return {
        "set": record["set"]["name"],
        "model": model["id"],
        "hash": model["hash"],
        "result_hash": model.get("result_hash"),
        "method": model["method"],
        "modality": model["modality"],
        "protocol": name,
        "score": protocol["score"],
        "smoothing": protocol["smoothing"],
        "calibration": _calibration(protocol["calibration"]),
        "leave_one_out": protocol["leave_one_out"],
        "warnings": _warnings(protocol["calibration"]),
        "drift": _drift(protocol),
        "default": name.startswith(record["default"]),
        "cases": len(protocol["cases"]),
        "healthy": len(protocol["healthy"]),
        "seconds_to_analyse": record.get("seconds_to_analyse"),
        "processor_seconds_to_analyse": record.get("processor_seconds_to_analyse"),
        "seconds_to_prepare": record.get("seconds_to_prepare"),
        "peak_memory_mb": record.get("peak_memory_mb"),
        "figures": {key: figure(values, patients.behind(key)) for key, values in draws.figures.items()},
        "points": {
            point: {
                "threshold": mean_threshold(protocol, point),
                "target": _target(protocol, point),
                "figures": {key: figure(values, patients.behind(key)) for key, values in found.items()},
            }
            for point, found in draws.points.items()
        },
        "thresholds": side_by_side(measurement, name, patients, tuning),
    }


def _curves(measurement: Measurement) -> dict[str, list[tuple[float, float]]]:
    """Of the default score with the model's own calibration, strictest threshold first: precision-recall and FROC.

    froc_healthy: the recall of the cases against the false alarms of the healthy scans.
    """
    name = default_protocol(measurement.record)
    protocol = measurement.record["protocols"][name]
    curves = {"pr": precision_recall(measurement.counts[name].sum(axis=0))}
    cases, healthy = protocol["cases"], protocol["healthy"]
    if cases and all("froc" in case for case in cases):
        # Recorded as the healthy tails are tabulated: the loosest threshold first.
        detected = np.array([case["froc"]["detected"][::-1] for case in cases])
        alarms = np.array([case["froc"]["false_positives"][::-1] for case in cases])
        lesions = np.nan_to_num(at_point(cases, POINT, "lesions"))
        curves["froc"] = froc_curve(lesions, detected, alarms)
        if healthy and all("froc_false_positives" in scan for scan in healthy):
            others = np.array([scan["froc_false_positives"][::-1] for scan in healthy])
            curves["froc_healthy"] = froc_curve(lesions, detected, others)
    return curves


def _distributions(measurement: Measurement) -> dict[str, Any]:
    """Single values behind the means: what is marked in each healthy scan, and the scores of all scans."""
    protocol = measurement.record["protocols"][default_protocol(measurement.record)]
    healthy = protocol["healthy"]
    return {
        "healthy_false_ml": {name: at_point(healthy, name, "false_ml").tolist() for name in points_of(protocol)},
        "scan_scores": {kind: column(protocol[kind], "scan_score").tolist() for kind in ("healthy", "cases")},
    }


def _examples(measurement: Measurement, each: int = 2) -> list[dict[str, Any]]:
    """The cases of the lowest and of the highest Dice at the balanced point; of equals the larger lesions."""
    cases = measurement.record["protocols"][default_protocol(measurement.record)]["cases"]
    dices, volumes = at_point(cases, POINT, "dice"), column(cases, "volume_ml")
    order = sorted(np.flatnonzero(np.isfinite(dices)), key=lambda i: (dices[i], -np.nan_to_num(volumes[i])))
    chosen = [(i, "worst") for i in order[:each]] + [(i, "best") for i in order[each:][::-1][:each]]
    return [
        {
            "model": measurement.record["model"]["id"],
            "id": cases[i]["id"],
            "kind": kind,
            "point": POINT,
            "dice": float(dices[i]),
            "volume_ml": float(volumes[i]),
            "picture": None,
        }
        for i, kind in chosen
    ]


def lost_on_grid(measurement: Measurement) -> dict[str, int]:
    """``lesions`` of ``of`` have no voxel on the model grid, small or outside the brain; ``cases`` have none left.

    Such a case has no Dice, and its lesions are no part of the recall.
    """
    cases = next(iter(measurement.record["protocols"].values()))["cases"]
    lost, native = column(cases, "lost_lesions"), column(cases, "native_lesions")
    return {
        "lesions": int(np.nansum(lost)),
        "of": int(np.nansum(native)),
        "cases": int((column(cases, "volume_ml") == 0).sum()),
    }


def _scans(measurement: Measurement, kind: str) -> list[tuple[str, str]]:
    protocol = next(iter(measurement.record["protocols"].values()))
    return [(scan["id"], scan["patient"]) for scan in protocol[kind]]


def _skipped(measurements: Sequence[Measurement]) -> list[Any]:
    found: list[Any] = []
    for measurement in measurements:
        for item in measurement.record["set"].get("skipped") or measurement.record.get("skipped") or ():
            if item not in found:
                found.append(item)
    return found


def _calibration(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"id": value.get("id"), "kind": value.get("kind", "own"), "scans": value.get("scans")}
    return {"id": None, "kind": value, "scans": None}


def _warnings(calibration: Any) -> list[str]:
    return [str(said) for said in calibration.get("warnings") or ()] if isinstance(calibration, Mapping) else []


def _drift(protocol: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the set's healthy scans score like those of the calibration; None where they are the same or unknown."""
    calibration = _calibration(protocol["calibration"])
    ranks = [scan.get("p_value") for scan in protocol["healthy"]]
    known = calibration["kind"] in ("own", "site") and calibration["scans"] and None not in ranks
    if not known or protocol["leave_one_out"]:
        return None
    return rank_drift(ranks, calibration["scans"])


def _target(protocol: Mapping[str, Any], point: str) -> Any:
    told = (protocol.get("points") or {}).get(point) or {}
    return told.get("target", TARGET_FPR.get(point))


def _or_less(value: float) -> float:
    return -1.0 if np.isnan(value) else value
