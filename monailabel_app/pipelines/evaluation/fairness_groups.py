"""The groups of one attribute, or of several at once: figures, a test, the largest gaps, what could be seen at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from monailabel_app.metrics.subgroup import (
    UNKNOWN,
    Estimate,
    GroupFigures,
    age_band,
    detectable_difference,
    equality_test,
    holm,
    patient_means,
)
from monailabel_app.reports.fairness_table import group_title

from .score_table import ScanResult, number

_POWER, _LEVEL = 0.8, 0.05
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}


def compare_groups(
    labels: Mapping[tuple[str, ...], Sequence[str]],
    figures: GroupFigures,
    order: Sequence[str],
    tested: np.ndarray,
    patients: Sequence[str],
    *,
    min_group: int,
    permutations: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One entry of ``attributes`` (see ``fairness``) per kind of groups, the tests corrected for their number.

    labels: by the attributes that make the groups, the group of each healthy scan. order: the figures to report; the
    first is the one whose values, one per scan, are ``tested``.
    """
    found = [
        _attribute(kind, np.asarray(given), figures, order, tested, patients, min_group, permutations, seed)
        for kind, given in labels.items()
    ]
    _correct(found)
    return found


def said(cell: str) -> str:
    """An attribute's cell; empty where it says nothing."""
    return "" if cell.lower() in ("", UNKNOWN, "nan", "none", "na", "n/a") else cell


def labels_of(rows: Sequence[ScanResult], attribute: str, bands: Sequence[float]) -> list[str]:
    """The group of each scan: ages in bands, sexes under one spelling, ``unknown`` where the table says nothing."""
    cells = [said(row.cells[attribute]) for row in rows]
    if attribute.lower() == "sex":
        cells = [_SEXES.get(cell.lower(), cell) for cell in cells]
    if attribute.lower() != "age":
        return [cell or UNKNOWN for cell in cells]
    ages = [number(cell, attribute, row.line) if cell else None for cell, row in zip(cells, rows, strict=True)]
    return [age_band(age, bands) for age in ages]


def _attribute(
    kind: Sequence[str],
    labels: np.ndarray,
    figures: GroupFigures,
    order: Sequence[str],
    tested: np.ndarray,
    patients: Sequence[str],
    min_group: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    members = {group: labels == group for group in _sorted(labels)}
    groups, small = [], []
    for group, inside in members.items():
        about = {
            "group": group,
            "title": group_title(kind, group),
            "scans": int(inside.sum()),
            "patients": figures.people(inside),
        }
        if about["patients"] < min_group:
            small.append(about)
            continue
        about["compared"] = group != UNKNOWN
        groups.append({**about, "figures": {name: figure_of(figures.of(name, inside)) for name in order}})
    names = [group["group"] for group in groups if group["compared"]]
    test = None
    if len(names) > 1:
        chosen = np.isin(labels, names)
        rows = np.flatnonzero(chosen)
        found = equality_test(
            tested[chosen],
            labels[chosen].tolist(),
            patients=[patients[i] for i in rows],
            generator=np.random.default_rng(seed),
            permutations=permutations,
        )
        test = {"figure": order[0], **found._asdict()}
    return {
        "name": " x ".join(kind),
        "of": list(kind),
        "intersection": len(kind) > 1,
        "groups": groups,
        "not_reported": small,
        "test": test,
        "gaps": [_gap(name, {n: members[n] for n in names}, figures) for name in order] if len(names) > 1 else [],
        "resolution": _resolution(order[0], {n: members[n] for n in names}, tested, patients),
    }


def _sorted(labels: np.ndarray) -> list[str]:
    """Groups in a stable order: young before old, unknown last."""
    place = {"<": 0, ">": 2}

    def key(label: str) -> list[tuple[int, str]]:
        return [(3 if part == UNKNOWN else place.get(part[:1], 1), part) for part in label.split(", ")]

    return sorted(set(labels.tolist()), key=key)


def _gap(name: str, members: Mapping[str, np.ndarray], figures: GroupFigures) -> dict[str, Any]:
    values = {group: figures.of(name, inside).value for group, inside in members.items()}
    high, low = max(values, key=values.get), min(values, key=values.get)
    if high == low:  # all alike
        low = next(group for group in members if group != high)
    return {
        "figure": name,
        "high": high,
        "low": low,
        "difference": figure_of(figures.difference(name, members[high], members[low])),
    }


def _resolution(
    name: str, members: Mapping[str, np.ndarray], tested: np.ndarray, patients: Sequence[str]
) -> dict[str, Any] | None:
    """What a comparison of the two groups that show least could see; the level is corrected later, with the tests."""
    means = {
        group: patient_means(tested[inside], [p for p, use in zip(patients, inside, strict=True) if use])
        for group, inside in members.items()
    }
    pairs = [(detectable_difference(means[a], means[b], power=_POWER), a, b) for a, b in combinations(means, 2)]
    if not pairs:
        return None
    _, a, b = max(pairs, key=lambda pair: pair[0])
    return {
        "figure": name,
        "groups": [a, b],
        "patients": [len(means[a]), len(means[b])],
        "power": _POWER,
        "means": [means[a], means[b]],
    }


def _correct(attributes: Sequence[dict[str, Any]]) -> None:
    """Correct the tests for their number, and say what could be seen at the level that leaves."""
    tests = [attribute["test"] for attribute in attributes if attribute["test"]]
    for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test |= {"p_corrected": corrected, "tests": len(tests)}
    level = _LEVEL / max(1, len(tests))
    for attribute in attributes:
        resolution = attribute["resolution"]
        if resolution:
            first, second = resolution.pop("means")
            resolution["level"] = level
            resolution["difference"] = detectable_difference(first, second, level=level, power=_POWER)


def figure_of(estimate: Estimate) -> dict[str, Any]:
    """For JSON: {value, interval}; no interval where none is known."""
    known = np.isfinite(estimate.low) and np.isfinite(estimate.high)
    return {"value": estimate.value, "interval": [estimate.low, estimate.high] if known else None}
