"""Lines over training mixtures: how the figure of each group goes with its share in the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.mixture_law import equal_share, fit_law
from monailabel_app.metrics.subgroup import SAUROC
from monailabel_app.reports.fairness_table import group_title, law_sentences

from .fairness_groups import figure_of
from .score_table import number, read_lines


def mixture_laws(models: Sequence[Mapping[str, Any]], mixtures: Path) -> list[dict[str, Any]]:
    """Lines over the training mixtures of several models."""
    mixed: dict[tuple[str, str], dict[str, float]] = {}
    for line, cells in read_lines(mixtures, ("model", "attribute", "group", "share")):
        share = number(cells["share"], "share", line)
        if not 0 <= share <= 1:
            raise EvaluationFailed(f"{line}: expected a share in [0, 1], got {share:g}")
        mixed.setdefault((cells["attribute"], cells["group"]), {})[cells["model"]] = share
    laws = []
    for (attribute, group), shares in mixed.items():
        for name in dict.fromkeys(entry["set"] for entry in models):
            used = [entry for entry in models if entry["set"] == name and entry["model"] in shares]
            law = _law(used, attribute, group, shares)
            if law is not None:
                laws.append({"set": name, **law})
    if not laws:
        raise EvaluationFailed(
            f"expected, in {Path(mixtures).name}, at least three models of the table, trained on two or more shares of "
            "a group that is reported; check the names of models, attribute and group"
        )
    return laws


def _law(
    entries: Sequence[Mapping[str, Any]], attribute: str, group: str, shares: Mapping[str, float]
) -> dict[str, Any] | None:
    found: dict[str, list[float]] = {}
    used: list[str] = []
    figure = SAUROC if all(SAUROC in entry["figures"] for entry in entries) else None
    for entry in entries:
        figure = figure or entry["tested"]
        own = next((a for a in entry["attributes"] if a["name"] == attribute), None)
        values = {g["group"]: g["figures"][figure]["value"] for g in own["groups"] if g["compared"]} if own else {}
        if not values or (found and set(found) != set(values)):
            continue
        used.append(entry["model"])
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    p = [shares[model] for model in used]
    if len(p) < 3 or len(set(p)) < 2:
        return None
    return law_of(p, found, attribute=attribute, group=group, figure=figure, models=used)


def law_of(
    shares: Sequence[float],
    found: Mapping[str, Sequence[float]],
    *,
    attribute: str,
    group: str,
    figure: str,
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """The entry of ``laws`` (see ``fairness``): a line per group over the share of ``group`` in the training data.

    shares: (n,) per training. found: per group its (n,) figures.
    """
    groups = []
    for name, values in found.items():
        law = fit_law(shares, values)
        groups.append(
            {
                "group": name,
                "title": group_title([attribute], name),
                "intercept": figure_of(law.intercept),
                "slope": figure_of(law.slope),
                "mean_absolute_error": law.mean_absolute_error,
                "runs": law.runs,
                "points": [list(point) for point in zip(shares, values, strict=True)],
            }
        )
    equal = []
    for a, b in combinations(found, 2):
        met = equal_share(shares, found[a], found[b], generator=np.random.default_rng(0))
        if met is not None:
            equal.append({"groups": [a, b], "value": met.value, "interval": [met.low, met.high], "met": met.met})
    law = {
        "attribute": attribute,
        "figure": figure,
        "share_of": group,
        "share_title": group_title([attribute], group),
        "models": list(models),
        "groups": groups,
        "equal_shares": equal,
    }
    return {**law, "sentences": law_sentences(law)}
