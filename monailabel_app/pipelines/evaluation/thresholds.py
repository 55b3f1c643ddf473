"""The voxelwise Dice of a model at thresholds of three origins, for the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.case_histograms import dices_above, first_bin_above, quantile_bin, threshold_of
from monailabel_app.metrics.patient_bootstrap import weighted_means
from monailabel_app.metrics.threshold_protocols import QUANTILE, TunedDices, cross_fitted, dices_at, tuned_elsewhere

from .measure import Measurement
from .scan_figures import POINT, Patients, at_point, figure


def side_by_side(
    measurement: Measurement, name: str, patients: Patients, tuning: Sequence[Measurement]
) -> dict[str, Any]:
    """``healthy_point``, ``healthy_quantile`` and ``label_tuned``; None where one cannot be had.

    name: of the protocol. tuning: measurements on the tuning splits of sets. Dice: the mean over cases.
    """
    protocol, counts = measurement.record["protocols"][name], measurement.counts[name]
    lesioned = counts[:, 0].any(axis=1)  # the model grid may lose the lesions of a case; then it has no Dice anywhere

    def mean(dices: np.ndarray) -> dict[str, Any]:
        known = np.where(lesioned, dices, np.nan)
        return figure(weighted_means(patients.weights, known), patients.behind("dice"))

    found: dict[str, Any] = {"healthy_point": None, "healthy_quantile": None, "label_tuned": None}
    own = _case_thresholds(protocol, POINT)
    if np.isfinite(own).all():
        at = [first_bin_above(threshold) for threshold in own]
        dices = dices_above(counts)[np.arange(len(counts)), at]
        found["healthy_point"] = {"threshold": float(own.mean()), "dice": mean(dices)}
    quantile = _healthy_quantile(measurement, name)
    if quantile is not None:
        at, source = quantile
        dice = mean(np.array([dices_at(one[None], value)[0] for one, value in zip(counts, at, strict=True)]))
        threshold = float(at.mean())
        found["healthy_quantile"] = {"quantile": QUANTILE, "threshold": threshold, "source": source, "dice": dice}
    tuned, tuned_on = _tuned(measurement, name, patients, tuning)
    if tuned is not None:
        found["label_tuned"] = {
            "thresholds": list(tuned.thresholds),
            "dice": mean(tuned.dices),
            "tuned_on": tuned_on,
            "note": "for comparison with papers only",
        }
    return found


def mean_threshold(protocol: Mapping[str, Any], point: str) -> float:
    """Of an operating point, over cases (who calibrated the model has a threshold of their own); NaN when untold."""
    values = _case_thresholds(protocol, point)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _case_thresholds(protocol: Mapping[str, Any], point: str) -> np.ndarray:
    """(cases,): of each case, else that of the protocol, which a record of one point alone holds."""
    values = at_point(protocol["cases"], point, "threshold")
    told = protocol.get("threshold") if point == POINT else None
    return values if told is None else np.where(np.isnan(values), told, values)


def _healthy_quantile(measurement: Measurement, name: str) -> tuple[np.ndarray, str] | None:
    """Per case the threshold that 0.5 % of the healthy voxels of other people exceed, and whose they are."""
    protocol, counts = measurement.record["protocols"][name], measurement.healthy_counts.get(name)
    cases = [case["patient"] for case in protocol["cases"]]
    if counts is not None:
        healthy = np.array([scan["patient"] for scan in protocol["healthy"]])
        others = {patient: counts[healthy != patient] for patient in set(cases)}
        if all(np.sum(values) for values in others.values()):
            # All but those with healthy scans of their own share one set of others.
            whole = threshold_of(quantile_bin(counts, 1 - QUANTILE))
            at = {
                patient: whole if len(values) == len(counts) else threshold_of(quantile_bin(values, 1 - QUANTILE))
                for patient, values in others.items()
            }
            return np.array([at[patient] for patient in cases]), "set"
    tails = protocol.get("froc_thresholds") or ()
    if len(tails) == len(TAIL_SHARES):
        return np.full(len(cases), float(tails[TAIL_SHARES.index(0.005)])), "calibration"
    return None


def _tuned(
    measurement: Measurement, name: str, patients: Patients, tuning: Sequence[Measurement]
) -> tuple[TunedDices | None, str]:
    counts, record = measurement.counts[name], measurement.record
    for other in tuning:
        same_set = other.record["set"]["name"] == record["set"]["name"]
        tuners = {case["patient"] for case in other.record["protocols"].get(name, {}).get("cases", ())}
        if tuners & set(patients.cases):  # a threshold must not have seen the patients that it is judged on
            continue
        if same_set and other.record["model"]["id"] == record["model"]["id"] and name in other.counts:
            try:
                return tuned_elsewhere(counts, other.counts[name]), "tuning split"
            except InvalidSettings:  # no lesion in it
                break
    return cross_fitted(counts, patients.cases), "other half of the patients"
