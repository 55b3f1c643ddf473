"""The report's charts of one data set: FROC, precision and recall, healthy false positives, scan scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import evaluation_rows as rows_of
from .charts import Line, Strip, line_chart, log_of_one_more, power_of_two_ticks, strip_chart
from .markup import Markup, element, is_number, number

_DASHES = {"intensity": "6 4", "atlas_zscore": "2 3"}
_HEALTHY, _LESION = "#0072b2", "#d55e00"
_SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1.0)


def curve_charts(entry: Mapping[str, Any]) -> list[Markup]:
    """FROC and precision-recall, or a sentence where the record has no curves."""
    curves = entry.get("curves") or {}
    rows = [row for row in rows_of.drawn_rows(entry) if row["model"] in curves]
    if not rows:
        return [element("p", "No curves were recorded for this set.", class_="missing")]
    return [_froc(entry, rows, curves), _precision_recall(entry, rows, curves)]


def healthy_charts(entry: Mapping[str, Any]) -> list[Markup]:
    """Falsely marked volume in healthy scans, and scan scores of healthy scans beside those with lesions."""
    distributions = entry.get("distributions") or {}
    rows = [row for row in rows_of.drawn_rows(entry) if row["model"] in distributions]
    charts = [_false_volumes(entry, rows, distributions), _scan_scores(entry, rows, distributions)]
    if not any(charts) and entry.get("healthy"):
        return [element("p", "No values of single healthy scans were recorded for this set.", class_="missing")]
    return [chart for chart in charts if chart is not None]


def _froc(entry: Mapping[str, Any], rows: list[rows_of.Row], curves: Mapping[str, Any]) -> Markup:
    lines = []
    rows = [row for row in rows if curves[row["model"]].get("froc")]
    if not rows:
        return element("p", "No FROC was recorded for this set.", class_="missing")
    parts = {model: _split_where_regions_merge(curve.get("froc") or ()) for model, curve in curves.items()}
    for line, row in _lines(entry, rows, {model: rising for model, (rising, _) in parts.items()}):
        first = line.thick
        rest = parts[line.name][1] if first else ()
        dots = {
            name: (rows_of.value(row, "false_positives_per_scan", name), rows_of.value(row, "recall", name))
            for name in (row.get("points") or {})
        }
        lines.append(Line(line.name, line.colour, line.points, dots if first else {}, first, line.dash, rest))
    largest = max((x for line in lines for x, _ in line.points if is_number(x)), default=1.0)
    chart = line_chart(
        lines,
        title="FROC: lesion recall against false positives per scan",
        description=_said(entry, rows, "Recall at the balanced operating point", "recall", "balanced"),
        x_label="false positives per scan (log scale)",
        y_label="lesion recall",
        x_ticks=power_of_two_ticks(largest),
        scale=log_of_one_more,
    )
    note = (
        "Rings: operating points of the thick curve. A curve ends where marked regions begin to grow together; dotted, "
        "that of the thick one goes on: fewer alarms there, as each is larger."
    )
    return _figure("Lesions found against false alarms (FROC)", chart, note)


def _precision_recall(entry: Mapping[str, Any], rows: list[rows_of.Row], curves: Mapping[str, Any]) -> Markup:
    rows = [row for row in rows if curves[row["model"]].get("pr")]
    if not rows:
        return element("p", "No precision and recall were recorded for this set.", class_="missing")
    lines = [line for line, _ in _lines(entry, rows, {m: c.get("pr") or () for m, c in curves.items()})]
    prevalence = entry.get("prevalence")
    chart = line_chart(
        lines,
        title="Precision against recall, over voxels",
        description=_said(entry, rows, "Average precision", "pooled_ap"),
        x_label="recall (share of lesion voxels marked)",
        y_label="precision",
        x_ticks=_SHARES,
        level=prevalence,
    )
    note = f"Dotted: chance, the share of lesion voxels, {100 * prevalence:.2f} %." if is_number(prevalence) else None
    return _figure("Voxels: precision and recall", chart, note)


def _split_where_regions_merge(
    points: Sequence[Sequence[float]],
) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """The points from the strictest threshold to that of most false positives, and those beyond.

    Beyond it marked regions merge: fewer false positives, and every lesion found, by one region as large as the brain.
    """
    known = [point[:2] for point in points if is_number(point[0]) and is_number(point[1])]
    most = max(range(len(known)), key=lambda i: known[i][0], default=-1)
    return known[: most + 1], known[most + 1 :]


def _lines(entry: Mapping[str, Any], rows: list[rows_of.Row], points: Mapping[str, Any]):
    """(line, row), the summed-up model's last, so that it lies on top."""
    first = rows_of.focus(entry)
    colours = rows_of.colours(rows_of.drawn_rows(entry), first)
    found = []
    for row in rows:
        name, thick = row["model"], first is not None and row["model"] == first["model"]
        dash = _DASHES.get(row.get("method", ""))
        found.append((Line(name, colours[name], [tuple(p[:2]) for p in points[name]], {}, thick, dash), row))
    return sorted(found, key=lambda pair: pair[0].thick)


def _false_volumes(
    entry: Mapping[str, Any], rows: list[rows_of.Row], distributions: Mapping[str, Any], point: str = "balanced"
) -> Markup | None:
    colours = rows_of.colours(rows_of.drawn_rows(entry), rows_of.focus(entry))
    strips = []
    for row in rows:
        values = [
            v for v in (distributions[row["model"]].get("healthy_false_ml") or {}).get(point) or () if is_number(v)
        ]
        if values:
            note = f"mean {number(sum(values) / len(values), 1)}"
            strips.append(Strip(row["model"], colours[row["model"]], {"healthy scans": values}, note))
    if not strips:
        return None
    largest = max(v for strip in strips for v in strip.groups["healthy scans"])
    chart = strip_chart(
        strips,
        title=f"Falsely marked volume in each healthy scan at the {point} operating point",
        description="; ".join(f"{strip.name}: {strip.note} ml" for strip in strips),
        x_label="ml marked in a healthy scan (log scale)",
        ticks=power_of_two_ticks(max(largest, 4.0), most=1024.0),
        scale=log_of_one_more,
        level=(2.0, "2 ml"),
    )
    note = f"Each point a healthy scan at {point}; bar: median. The point “bounded” aims at 2 ml in 95 % of scans."
    return _figure("False alarms in healthy scans", chart, note)


def _scan_scores(entry: Mapping[str, Any], rows: list[rows_of.Row], distributions: Mapping[str, Any]) -> Markup | None:
    strips = []
    for row in rows:
        scores = distributions[row["model"]].get("scan_scores") or {}
        groups = {"healthy": scores.get("healthy") or (), "with lesions": scores.get("cases") or ()}
        if all(any(is_number(v) for v in group) for group in groups.values()):
            auroc = rows_of.value(row, "scan_auroc")
            strips.append(
                Strip(row["model"], "#333333", groups, f"AUROC {number(auroc, 2)}" if auroc is not None else "")
            )
    if not strips:
        return None
    chart = strip_chart(
        strips,
        title="Scan scores of healthy scans and of scans with lesions",
        description="; ".join(f"{strip.name}: {strip.note}" for strip in strips),
        x_label="scan score, every row on its own scale: only the overlap counts",
        ticks=None,
        colours={"healthy": _HEALTHY, "with lesions": _LESION},
        shapes={"with lesions": "triangle"},
    )
    key = element(
        "span",
        element("span", "● healthy (upper)", class_="healthy-key"),
        " ",
        element("span", "▲ with lesions (lower)", class_="lesion-key"),
        "; bar: median.",
    )
    return _figure("Scan scores, healthy and with lesions", chart, key)


def _said(entry: Mapping[str, Any], rows: list[rows_of.Row], lead: str, name: str, point: str | None = None) -> str:
    """The chart in a sentence, for readers who cannot see it."""
    parts = [f"{row['model']} {number(rows_of.value(row, name, point))}" for row in rows]
    return f"{lead}: {', '.join(parts)}."


def not_drawn(entry: Mapping[str, Any]) -> Markup | None:
    """The models that were measured and are in no chart."""
    drawn = {row["model"] for row in rows_of.drawn_rows(entry)}
    names = dict.fromkeys(row["model"] for row in rows_of.default_rows(entry) if row["model"] not in drawn)
    if not names:
        return None
    lead = f"The charts show {len(drawn)} models: the one offered first, the baselines and the best others. Not drawn: "
    return element("p", lead, ", ".join(names), ".", class_="note")


def _figure(title: str, chart: Markup, *notes: Any) -> Markup:
    lines = [element("span", note, class_="note") for note in notes if note is not None]
    return element("figure", element("figcaption", element("strong", title), *lines), chart, class_="chart-box")
