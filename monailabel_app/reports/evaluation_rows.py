"""What the report's parts read from an evaluation's record: which rows count, who is a baseline, what is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import BASELINE_PALETTE, PALETTE
from .markup import is_number

BASELINES = {"intensity": "intensity", "atlas_zscore": "atlas"}
POINTS = ("sensitive", "balanced", "specific", "bounded")
MOST_DRAWN = 8
Row = Mapping[str, Any]


def anchor(prefix: str, name: Any) -> str:
    """An id for a place in the page, of letters, digits and hyphens."""
    return f"{prefix}-{re.sub(r'[^A-Za-z0-9]+', '-', str(name)).strip('-').lower() or 'x'}"


def default_rows(entry: Mapping[str, Any]) -> list[Row]:
    """The rows of every model's default score and smoothing, best pooled average precision first."""
    rows = [row for row in entry.get("rows", ()) if row.get("default", True)]
    return sorted(rows, key=lambda row: -_ap(row))


def other_rows(entry: Mapping[str, Any]) -> list[Row]:
    """The rows of other scores and smoothings."""
    return [row for row in entry.get("rows", ()) if not row.get("default", True)]


def is_baseline(row: Row) -> bool:
    """Whether the row is one of the two baselines that need no training."""
    return row.get("method") in BASELINES


def default_model(entry: Mapping[str, Any]) -> str | None:
    """The model that is offered first for the set's sequence, if it was measured."""
    name = entry.get("default_model")
    return name if any(row.get("model") == name for row in entry.get("rows", ())) else None


def focus(entry: Mapping[str, Any]) -> Row | None:
    """The row the set is summed up by: the default model's, else the best of the trained ones; as it is calibrated."""
    rows, name = _one_per_model(default_rows(entry)), default_model(entry)
    if name is not None:
        return next((row for row in rows if row["model"] == name), None)
    return next((row for row in rows if not is_baseline(row)), rows[0] if rows else None)


def drawn_rows(entry: Mapping[str, Any]) -> list[Row]:
    """At most MOST_DRAWN rows, one per model: the summed-up one, the best of each baseline, then the best others."""
    rows = _one_per_model(default_rows(entry))
    first = focus(entry)
    chosen = [first] if first else []
    for method in BASELINES:
        best = next((row for row in rows if row.get("method") == method), None)
        if best is not None and best not in chosen:
            chosen.append(best)
    for row in rows:
        if len(chosen) < MOST_DRAWN and row not in chosen and not is_baseline(row):
            chosen.append(row)
    return sorted(chosen, key=lambda row: -_ap(row))


def colours(rows: Sequence[Row], first: Row | None) -> dict[str, str]:
    """A colour per model of ``drawn_rows``: the summed-up one the first of the palette, baselines grey."""
    palette, greys = iter(PALETTE[1:]), iter(BASELINE_PALETTE)
    found = {}
    for row in rows:
        if first is not None and row["model"] == first["model"]:
            found[row["model"]] = PALETTE[0]
        else:
            found[row["model"]] = next(greys) if is_baseline(row) else next(palette)
    return found


def figure(row: Row, name: str, point: str | None = None) -> Mapping[str, Any] | None:
    """A figure of the row, or of one of its operating points."""
    source = row.get("figures") if point is None else (row.get("points") or {}).get(point, {}).get("figures")
    return (source or {}).get(name)


def value(row: Row, name: str, point: str | None = None) -> float | None:
    """The number of a figure, None where there is none."""
    found = (figure(row, name, point) or {}).get("value")
    return found if is_number(found) else None


def points_of(entry: Mapping[str, Any]) -> list[str]:
    """The operating points that some row has, the known ones in their order first."""
    names = dict.fromkeys(name for row in entry.get("rows", ()) for name in row.get("points") or {})
    return [name for name in POINTS if name in names] + [name for name in names if name not in POINTS]


def difference(row: Row, reference: str) -> Mapping[str, Any]:
    """The paired differences to a reference by metric, {} where the row is that reference itself."""
    return (row.get("differences") or {}).get(reference) or {}


def shown_difference(row: Row, reference: str = "best_baseline", metric: str = "pooled_ap") -> dict[str, Any] | None:
    """Difference, interval and p-value (where it was tested) of one metric; None where there is none."""
    found = difference(row, reference).get(metric)
    return dict(found) if found and is_number(found.get("value")) else None


def verdict_words(row: Row) -> tuple[str, str]:
    """(kind, words): kind is good, bad, unclear or none."""
    if is_baseline(row):
        return "none", "baseline"
    verdict = row.get("verdict") or {}
    said = {name: verdict.get(f"beats_{name}") for name in BASELINES.values()}
    said = {name: answer for name, answer in said.items() if answer in ("yes", "no", "unclear")}
    if not said:
        return "none", "not compared with a baseline"
    worse = [name for name, answer in said.items() if answer == "no"]
    unclear = [name for name, answer in said.items() if answer == "unclear"]
    parts = []
    if worse:
        parts.append(f"does not beat {' or '.join(worse)}")
    if unclear:
        parts.append(f"unclear against {' and '.join(unclear)}")
    if not parts:
        return "good", f"beats {' and '.join(said)}"
    beaten = [name for name, answer in said.items() if answer == "yes"]
    if beaten:
        parts.append(f"beats {' and '.join(beaten)}")
    return ("bad" if worse else "unclear"), "; ".join(parts)


def _ap(row: Row) -> float:
    found = value(row, "pooled_ap")
    return found if found is not None else -1.0


def _one_per_model(rows: Sequence[Row]) -> list[Row]:
    """The model's own calibration before one made on the set's own scans."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.get(row["model"])
        if before is None or (calibration_kind(before) == "set" and calibration_kind(row) != "set"):
            found[row["model"]] = row
    return sorted(found.values(), key=lambda row: -_ap(row))


def calibration_kind(row: Row) -> str | None:
    """own, set or site."""
    calibration = row.get("calibration")
    return calibration.get("kind") if isinstance(calibration, Mapping) else calibration
