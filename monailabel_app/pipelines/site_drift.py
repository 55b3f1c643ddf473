"""The drift report: what the audit log says about the scans that were analysed here, in the order they came.

Two comparisons, which mean different things. With the calibration's healthy scans: p-values of healthy scans are
uniform, those of patients are not, so that a difference is to be expected in a clinic and no alarm. With the site's own
first scans: as long as the same kind of patients is scanned in the same way, the order of the scans does not matter;
where it does (``calibration.watch``), something has changed: the scanner, a protocol, the patients, or the software.

False alarms: the watches of all models and quantities together raise one, ever, with probability ALARM at most
(Bonferroni over Ville's bounds); so do the comparisons of the last days with the first scans (Holm), at each report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app import __version__
from monailabel_app.audit.verify import records, verify
from monailabel_app.calibration.drift import rank_drift
from monailabel_app.calibration.watch import LEAST_SCANS, compare, holm, share_interval, watch
from monailabel_app.errors import EvaluationFailed

KIND, SCHEMA = "drift report", 1
ALARM = 0.05
REFERENCE_SCANS = 50
LEAST_PER_WEEK = 5
FLAGGED_P = 0.05

# name: what it is, whether it is a yes or no.
QUANTITIES: Mapping[str, tuple[str, bool]] = {
    "anomaly_score": ("scan score, healthy standard deviations", False),
    "drift_distance": ("distance of the scan's healthy-looking bulk from the calibration's", False),
    "background": ("background ratio: how wide the scan's map is, against healthy scans", False),
    "gate_flagged": ("flagged by the input gate", True),
    "warned": ("results with at least one warning", True),
    "seconds": ("seconds of computing, where the analysis was made anew", False),
    "failed": ("analyses that failed", True),
}


def drift_report(
    log: Path,
    *,
    model: str | None = None,
    days: int = 30,
    reference: int = REFERENCE_SCANS,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The record that the page is made from, JSON types; see ``_series`` for a model's part.

    model: its id or name; None for all. days: what counts as recent. reference: how many of the first scans are what
    the recent ones are compared with. Raises NoAuditLog, and EvaluationFailed where there is no analysis in the log.
    """
    now = now or datetime.now(timezone.utc)
    whole = verify(log)
    groups = _grouped(records(log), model)
    if not groups:
        raise EvaluationFailed(
            f"expected analyses{f' with {model}' if model else ''} in the audit log, found none; the report needs a "
            "server that has been used"
        )
    watched = sum(len(_values(rows)) for rows in groups.values())
    series = [
        _series(key, rows, watched / ALARM, now - timedelta(days=days), reference) for key, rows in groups.items()
    ]
    _correct(series)
    return {
        "kind": KIND,
        "schema_version": SCHEMA,
        "made": {"time": now.isoformat(timespec="seconds"), "app_version": __version__},
        "log": {"whole": whole.whole, "records": whole.records, "head": whole.head.hash, "faults": len(whole.faults)},
        "settings": {
            "days": days,
            "reference": reference,
            "alarm": ALARM,
            "watched": watched,
            "least_scans": LEAST_SCANS,
            "least_per_week": LEAST_PER_WEEK,
        },
        "series": series,
    }


def changes(record: Mapping[str, Any]) -> list[str]:
    """What has changed, in sentences; empty where no change shows."""
    found = []
    for entry in record["series"]:
        for about in entry["quantities"].values():
            seen, change = about["watch"], about["change"] or {}
            if seen["state"] == "changed":
                found.append(f"{entry['model']}: {about['title']}: changed since about scan {seen['since']}")
            elif change.get("changed"):
                was = f"{change['reference']:g} before, {change['recent']:g} now (p = {change['corrected']:.2g})"
                found.append(f"{entry['model']}: {about['title']}: {was}")
    return found


def _grouped(found: Iterable[Mapping[str, Any]], model: str | None) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The first analysis of every scan, by model, its files, its calibration, score and smoothing; oldest first.

    A scan that is looked at again, with another threshold perhaps, counts once. What failed belongs to the newest
    series of its model.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    seen: set[tuple[Any, ...]] = set()
    latest: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[str, dict[str, Any]]] = []
    for record in found:
        facts = record["facts"]
        if record["event"] != "analysis" or record["outcome"] not in {"ok", "failed"}:
            continue
        # The bands are the same model's.
        name = str(facts.get("model", "")).split("@")[0].removesuffix("_bands")
        if model is not None and model not in {name, facts.get("model")}:
            continue
        row = _row(record)
        if record["outcome"] == "failed":
            waiting.append((name, row))
            continue
        settings = facts.get("settings") or {}
        key = tuple(
            str(value or "")
            for value in (
                facts.get("model"), facts.get("result_hash"), facts.get("calibration"), settings.get("score"),
                settings.get("smoothing"),
            )
        )  # fmt: skip
        latest[name] = key
        scan = (key, facts.get("input") or facts.get("image") or record["sequence"])
        if scan not in seen:
            seen.add(scan)
            groups.setdefault(key, []).append(row)
    for name, row in waiting:
        if name in latest:
            groups[latest[name]].append(row)
    for rows in groups.values():
        rows.sort(key=lambda row: row["sequence"])
    return groups


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    facts = record["facts"]
    gate, drift, seconds = (facts.get(key) or {} for key in ("gate", "drift", "seconds"))
    failed = record["outcome"] == "failed"
    made = seconds.get("reconstruction")
    known = {
        "anomaly_score": facts.get("anomaly_score"),
        "drift_distance": drift.get("distance"),
        "background": drift.get("background_ratio"),
        "gate_flagged": None if "passed" not in gate else float(not gate["passed"]),
        "warned": None if failed else float(bool(facts.get("warnings"))),
        "seconds": None if made is None else sum(value for key, value in seconds.items() if key != "waiting"),
        "failed": float(failed),
    }
    return {
        "sequence": record["sequence"],
        "time": record["time"],
        "p_value": facts.get("p_value"),
        "healthy_scans": facts.get("healthy_scans"),
        "kind": facts.get("kind"),
        **known,
    }


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, float]]]:
    """(time, value) of every quantity that is known of at least one scan."""
    found = {name: [(row["time"], float(row[name])) for row in rows if row[name] is not None] for name in QUANTITIES}
    return {name: values for name, values in found.items() if values}


def _series(
    key: tuple[str, ...], rows: list[dict[str, Any]], alarm: float, recent: datetime, reference: int
) -> dict[str, Any]:
    """One model with one calibration: scans, weeks, healthy (the p-values), per quantity the watch and the change."""
    analysed = [row for row in rows if not row["failed"]]
    quantities = {}
    for name, values in _values(rows).items():
        first = [value for _, value in values[:reference]]
        last = [value for time, value in values[reference:] if datetime.fromisoformat(time) >= recent]
        quantities[name] = {
            "title": QUANTITIES[name][0],
            "yes_no": QUANTITIES[name][1],
            "times": [time for time, _ in values],
            "values": [value for _, value in values],
            "watch": watch([value for _, value in values], alarm),
            "change": compare(first, last, yes_no=QUANTITIES[name][1]),
            "reference_scans": len(first),
            "recent_scans": len(last),
        }
    model, result_hash, calibration, score, smoothing = key
    return {
        "model": model,
        "result_hash": result_hash,
        "calibration": calibration,
        "score": score,
        "smoothing": smoothing,
        "scans": len(analysed),
        "failed": len(rows) - len(analysed),
        "failures": dict(Counter(str(row["kind"]) for row in rows if row["failed"])),
        "from": rows[0]["time"],
        "to": rows[-1]["time"],
        "weeks": _weeks(rows),
        "healthy": _against_healthy(analysed),
        "quantities": quantities,
    }


def _weeks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By ISO week; figures only where there are LEAST_PER_WEEK scans."""
    by_week: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        year, week, _ = datetime.fromisoformat(row["time"]).isocalendar()
        by_week.setdefault(f"{year}-W{week:02d}", []).append(row)
    told = []
    for week, found in by_week.items():
        analysed = [row for row in found if not row["failed"]]
        entry: dict[str, Any] = {"week": week, "scans": len(analysed), "failed": len(found) - len(analysed)}
        entry["few"] = len(analysed) < LEAST_PER_WEEK
        if not entry["few"]:
            entry["flagged"] = _share([row["p_value"] <= FLAGGED_P for row in analysed if row["p_value"] is not None])
            entry["gate"] = _share([bool(row["gate_flagged"]) for row in analysed if row["gate_flagged"] is not None])
            entry["warned"] = _share([bool(row["warned"]) for row in analysed])
            for name in ("anomaly_score", "background", "seconds"):
                values = [row[name] for row in analysed if row[name] is not None]
                entry[name] = round(float(np.median(values)), 3) if values else None
        told.append(entry)
    return told


def _share(found: Sequence[bool]) -> dict[str, Any] | None:
    if not found:
        return None
    return {"yes": int(sum(found)), "total": len(found), "interval": list(share_interval(int(sum(found)), len(found)))}


def _against_healthy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whether the scans' p-values are those of healthy scans; None where there are too few, or they are no ranks."""
    p_values = [float(row["p_value"]) for row in rows if row["p_value"] is not None]
    counts = {row["healthy_scans"] for row in rows if row["healthy_scans"]}
    if len(p_values) < LEAST_SCANS or len(counts) != 1:
        return None
    found = rank_drift(p_values, int(counts.pop()))
    if found is None:
        return None
    flagged = [value <= FLAGGED_P for value in p_values]
    told = {key: found[key] for key in ("distance", "p_value", "scans", "calibration_scans")}
    return {**told, "flagged": _share(flagged)}


def _correct(series: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over every comparison of the report, and what follows from it."""
    changes = {
        (number, name): about["change"]
        for number, entry in enumerate(series)
        for name, about in entry["quantities"].items()
        if about["change"] is not None
    }
    corrected = holm({key: change["p_value"] for key, change in changes.items()})
    for key, change in changes.items():
        change["corrected"] = corrected[key]
        change["changed"] = corrected[key] < ALARM
