"""Every model beside the baselines: paired differences, their p-values, and the verdict that is said out loud.

Intervals are of resampled patients, the same draws for both. P-values exchange the two models within patients: for the
mean over cases its values, for the scan AUROC its ranks. A pooled figure has no value per case and so no p-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.permutation import auroc_permutation_test, paired_permutation_test

from .scan_figures import POINT, Draws, Patients, figure

BASELINES = {"intensity": "intensity", "atlas": "atlas_zscore"}
REFERENCES = {**BASELINES, "ddpm": "ddpm"}  # the name of the comparison, and the method that it means
BEST = "best_baseline"
COMPARED = ("pooled_ap", "mean_case_ap", "dice", "scan_auroc")
PERMUTATIONS, _AUROC_PERMUTATIONS = 10_000, 2000
_SEED = 11
Reading = tuple[str, str]  # model id and protocol


def references(
    records: Sequence[Mapping[str, Any]], modality: str, draws: Mapping[Reading, Draws]
) -> dict[str, Mapping[str, Any]]:
    """The record of the model that each comparison is made with: of several models of a method the strongest one here.

    A baseline of single levels misses most of a volume; beside it, every other model would seem to beat the baseline.
    Equally strong ones: that of the modality.
    """

    def strength(record: Mapping[str, Any]) -> tuple[float, bool]:
        own = _value(draws[reading_of(record, "own")], "pooled_ap")
        return own, record["model"]["modality"] == modality

    found: dict[str, Mapping[str, Any]] = {}
    for key, method in REFERENCES.items():
        candidates = [record for record in records if record["model"]["method"] == method]
        if candidates:
            found[key] = max(candidates, key=strength)
    baselines = [record for key, record in found.items() if key in BASELINES]
    if baselines:
        found[BEST] = max(baselines, key=strength)
    return found


def default_protocol(record: Mapping[str, Any]) -> str:
    """The protocol of a model's default score with its own calibration, else with another, else the first."""
    names = list(record["protocols"])
    ours = [name for name in names if name.startswith(record["default"])] or names
    return next((name for name in ours if name.endswith("/own")), ours[0])


def reading_of(record: Mapping[str, Any], kind: str) -> Reading:
    """How a reference is read: its default score, calibrated as what it is compared with where that was measured."""
    name = f"{record['default']}{kind}"
    return record["model"]["id"], name if name in record["protocols"] else default_protocol(record)


def differences(mine: Draws, other: Draws, patients: Patients, reference: str) -> dict[str, Any]:
    """``reference``, and per figure of COMPARED value, interval and p_value of mine minus the other's."""
    found: dict[str, Any] = {"reference": reference}
    for key in COMPARED:
        pair = [draws.points.get(POINT, {}) if key == "dice" else draws.figures for draws in (mine, other)]
        if key in pair[0] and key in pair[1]:
            found[key] = figure(pair[0][key] - pair[1][key], patients.behind(key)) | {
                "p_value": _p_value(key, mine, other, patients)
            }
    return found


def verdict(row: Mapping[str, Any], patients: int) -> dict[str, Any]:
    """Whether the pooled AP is above that of each baseline, and one sentence with the numbers.

    ``yes``: the 95 % interval of the paired difference lies above 0; ``no``: at or below; ``unclear``: it holds 0, or
    there are too few patients for one; None where the row is the baseline itself or that was not measured.
    """
    found: dict[str, Any] = {f"beats_{key}": None for key in BASELINES}
    parts = []
    for key, method in BASELINES.items():
        entry = row["differences"].get(key)
        if entry is None or row["method"] == method or "pooled_ap" not in entry:
            continue
        gap = entry["pooled_ap"]
        found[f"beats_{key}"] = _side(gap["interval"])
        parts.append(_words(entry["reference"], gap, found[f"beats_{key}"], patients))
    value = row["figures"]["pooled_ap"]["value"]
    prevalence = row["figures"]["prevalence"]["value"]
    said = "no figure" if np.isnan(value) else f"{value:.3f} (chance {prevalence:.3f})"
    found["sentence"] = f"AP {said}: {', '.join(parts)}." if parts else f"AP {said}."
    return found


def _side(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "unclear"
    return "yes" if interval[0] > 0 else "no" if interval[1] <= 0 else "unclear"


def _words(reference: str, gap: Mapping[str, Any], side: str, patients: int) -> str:
    by = f"difference {gap['value']:+.3f}"
    if gap["interval"] is None:
        people = "1 patient" if patients == 1 else f"{patients} patients"
        return f"undecided beside {reference} ({by}, {people})"
    by += f" [{gap['interval'][0]:+.3f}, {gap['interval'][1]:+.3f}]"
    return {"yes": "above", "no": "NOT above", "unclear": "not shown to be above"}[side] + f" {reference} ({by})"


def _p_value(key: str, mine: Draws, other: Draws, patients: Patients) -> float | None:
    """None where there is none: pooled figures, and fewer than two patients."""
    generator = np.random.default_rng(_SEED)
    try:
        if key == "scan_auroc":
            names = [*patients.cases, *patients.healthy]
            diseased = np.arange(len(names)) < len(patients.cases)
            return auroc_permutation_test(
                diseased,
                np.concatenate(mine.scan_scores),
                np.concatenate(other.scan_scores),
                generator=generator,
                permutations=_AUROC_PERMUTATIONS,
                patients=names,
            )
        if key not in mine.case_values or key not in other.case_values:
            return None
        first, second = mine.case_values[key], other.case_values[key]
        known = np.isfinite(first) & np.isfinite(second)
        names = [name for name, use in zip(patients.cases, known, strict=True) if use]
        if len(set(names)) < 2:
            return None
        return paired_permutation_test(
            first[known], second[known], generator=generator, permutations=PERMUTATIONS, patients=names
        )
    except InvalidSettings:  # a scan without a score, or one group only: nothing to test
        return None


def _value(draws: Draws, key: str) -> float:
    value = float(draws.figures[key][0])
    return -1.0 if np.isnan(value) else value
