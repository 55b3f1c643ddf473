"""An evaluation as text: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
BASELINES = ("intensity", "atlas_zscore")  # methods
_POINT = "balanced"
# Figure, title, digits, and whether it is read at the balanced operating point.
_COLUMNS = (
    ("pooled_ap", "AP", 3, False),
    ("dice", "Dice", 3, True),
    ("recall", "lesion recall", 2, True),
    ("false_positives_per_scan", "false positives per scan", 1, True),
    ("healthy_false_ml", "healthy false volume, ml", 1, True),
    ("scan_auroc", "scan AUROC", 3, False),
)
_PART = ("analysed_share", "share of lesions looked at", 2, False)  # where some model looks at a part of a volume only
_WHOLE = 0.98
_POINT_COLUMNS = (
    ("dice", "Dice", 3),
    ("recall", "lesion recall", 2),
    ("false_positives_per_scan", "false positives per scan", 1),
    ("volume_error_ml", "volume error, ml", 1),
    ("volume_bias_ml", "volume bias, ml", 1),
    ("rodeo", "RoDeO", 3),
    ("rodeo_localisation", "localisation", 2),
    ("rodeo_shape", "shape", 2),
    ("healthy_false_ml", "healthy false volume, ml", 1),
)
_THRESHOLDS = (
    ("healthy_point", "balanced point"),
    ("healthy_quantile", "healthy quantile 99.5 %"),
    ("label_tuned", "label-tuned (papers only)"),
)
_DETAILED = 3  # trained models whose operating points are shown, beside both baselines
_ABOUT = (
    "set", "model", "hash", "method", "modality", "protocol", "score", "smoothing", "leave_one_out", "default",
    "cases", "healthy", "seconds_to_prepare", "seconds_to_analyse", "processor_seconds_to_analyse", "peak_memory_mb",
)  # fmt: skip


def comparison_markdown(record: Mapping[str, Any]) -> str:
    """All sets: a table of the columns people read, then operating points and thresholds of the best models.

    One row per model, of its default score; ``*`` where the set's own healthy scans calibrate.
    """
    made = record.get("made", {})
    told = f"Made {made.get('time', '')} by version {made.get('app_version', '')}."
    parts = [f"# Evaluation\n\n{told} {_preamble(record)}"]
    for entry in record["sets"]:
        rows = [row for row in entry["rows"] if row["default"]]
        if rows:
            parts.append(_set_markdown(entry, rows))
    if record["failed"]:
        lines = "\n".join(f"- {item['model']} on {item['set']}: {item['error']}" for item in record["failed"])
        parts.append(f"## Not measured\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def comparison_csv(record: Mapping[str, Any]) -> str:
    """Every row of every set, all scores, with limits, operating points and differences in columns of their own."""
    return csv_text(_flat(entry, row) for entry in record["sets"] for row in entry["rows"])


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV whose columns are all keys in the order of their first appearance; None is an empty cell."""
    lines = list(lines)
    names = list(dict.fromkeys(key for line in lines for key in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def figure_text(figure: Mapping[str, Any] | None, digits: int, signed: bool = False) -> str:
    """``0.634 [0.507, 0.727]``; ``-`` where there is no value."""
    if figure is None or figure["value"] is None or figure["value"] != figure["value"]:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    limits = figure.get("interval")
    text = f"{figure['value']:{form}}"
    return text if not limits or None in limits else f"{text} [{limits[0]:{form}}, {limits[1]:{form}}]"


def figure_of(row: Row, name: str, at_point: bool = False, point: str = _POINT) -> Mapping[str, Any] | None:
    """A figure of a row, or of its operating point; None where it has none."""
    source = row.get("points", {}).get(point, {}).get("figures", {}) if at_point else row["figures"]
    return source.get(name)


def _preamble(record: Mapping[str, Any]) -> str:
    quick = "**Quick run: a part of the cases only.** " if record.get("quick") else ""
    return (
        f"{quick}Measured on the model grid (2 mm). AP: average precision over brain voxels of all cases together; "
        "the AP of chance is the prevalence. Dice (mean over cases), lesion recall (any overlap, 26-connected) and "
        "false positives at the `balanced` operating point, chosen on healthy scans; components below 0.1 ml dropped. "
        "Healthy false volume: what is marked in a healthy scan. Brackets: 95 % bootstrap over patients "
        f"({record['resamples']} resamples); differences are paired, in bold where the interval leaves 0 out. p: "
        "paired permutation over patients of the AP of each case, not corrected for the number of rows. Who calibrated "
        "a model is judged without their own statistics and thresholds. Seconds are medians per scan, preparing not "
        "included; they rank methods and no more."
    )


def _set_markdown(entry: Mapping[str, Any], rows: Sequence[Row]) -> str:
    people = entry.get("patients", entry["cases"])
    healthy = f"{entry['healthy']} healthy scans" if entry["healthy"] else "no healthy scans of the same source"
    split = f", split {entry['split']}" if entry.get("split") else ""
    few = "" if any(figure_of(row, "pooled_ap")["interval"] for row in rows) else " Too few patients for intervals."
    lost = _lost(entry.get("lost_on_grid") or {})
    skipped = f" Left out: {_many(len(entry['skipped']), 'scan')}." if entry.get("skipped") else ""
    chance = f" AP of chance {entry['prevalence']:.3f}." if entry.get("prevalence") is not None else ""
    star = "\n\n\\* calibrated on the healthy scans of this set instead of its own calibration."
    note = star if any(row["calibration"]["kind"] == "set" for row in rows) else ""
    parts = [
        f"## {entry['title']}\n\n`{entry['name']}`{split}: {_many(entry['cases'], 'case')} of "
        f"{_many(people, 'patient')}, {healthy}.{chance}{few}{lost}{skipped}",
        _main_table(rows) + note,
        _worse_sentences(rows),
        f"### Operating points and thresholds\n\n{_point_table(rows)}\n\n{_threshold_table(rows)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _lost(lost: Mapping[str, Any]) -> str:
    if not lost.get("lesions"):
        return ""
    whole = f", {_many(lost['cases'], 'case')} no lesion left and so no Dice" if lost.get("cases") else ""
    return f" Of {_many(lost['of'], 'lesion')} {lost['lesions']} have no voxel on the model grid{whole}."


def _main_table(rows: Sequence[Row]) -> str:
    columns = [column for column in _COLUMNS if any(figure_of(row, column[0], column[3]) for row in rows)]
    shares = [(figure_of(row, _PART[0]) or {}).get("value") for row in rows]
    if any(share is not None and share < _WHOLE for share in shares):
        columns.append(_PART)
    head = ["model", "score", *(title for _, title, _, _ in columns)]
    head += ["AP minus best baseline", "p (case AP)", "beats both", "seconds"]
    lines = []
    for row in rows:
        cells = [_name(row), row["score"]]
        cells += [figure_text(figure_of(row, key, at_point), digits) for key, _, digits, at_point in columns]
        cells += [_difference(row), _p_value(row), _answer(row), _seconds(row)]
        lines.append(cells)
    return _table(head, lines)


def _point_table(rows: Sequence[Row]) -> str:
    """Operating points of both baselines and the best trained models; all are in the CSV."""
    shown = _detailed(rows)
    columns = [c for c in _POINT_COLUMNS if any(figure_of(r, c[0], True, p) for r in shown for p in r["points"])]
    head = ["model", "point", "threshold", *(title for _, title, _ in columns)]
    lines = []
    for row in shown:
        for name, point in row["points"].items():
            threshold = "-" if point["threshold"] is None else f"{point['threshold']:.2f}"
            cells = [figure_text(point["figures"].get(key), digits) for key, _, digits in columns]
            lines.append([_name(row), name, threshold, *cells])
    return _table(head, lines)


def _threshold_table(rows: Sequence[Row]) -> str:
    """Voxelwise Dice at thresholds of three origins, and the best one that knows the labels."""
    head = ["model", *(f"Dice, {title}" for _, title in _THRESHOLDS), "best Dice (oracle, pooled)"]
    lines = []
    for row in rows:
        found = row.get("thresholds") or {}
        cells = [figure_text((found.get(key) or {}).get("dice"), 3) for key, _ in _THRESHOLDS]
        lines.append([_name(row), *cells, figure_text(figure_of(row, "best_dice_oracle"), 3)])
    return _table(head, lines)


def _worse_sentences(rows: Sequence[Row]) -> str:
    """Which trained models do not beat a baseline, in a line each."""
    lines = []
    for row in rows:
        if row["method"] not in BASELINES and "no" in _answers(row):
            lines.append(f"- {_name(row)}: {row['verdict']['sentence']}")
    return "Not better than a baseline:\n\n" + "\n".join(lines) if lines else ""


def _detailed(rows: Sequence[Row]) -> list[Row]:
    trained = [row for row in rows if row["method"] not in BASELINES][:_DETAILED]
    return [row for row in rows if row in trained or row["method"] in BASELINES]


def _answers(row: Row) -> list[str]:
    verdict = row.get("verdict") or {}
    return [v for v in (verdict.get("beats_intensity"), verdict.get("beats_atlas")) if v is not None]


def _answer(row: Row) -> str:
    """``yes`` when both baselines are beaten, ``NO`` when one is not; of a baseline itself nothing."""
    answers = _answers(row)
    if row["method"] in BASELINES or not answers:
        return "-"
    return "NO" if "no" in answers else "unclear" if "unclear" in answers else "yes"


def _difference(row: Row) -> str:
    figure = (row["differences"].get("best_baseline") or {}).get("pooled_ap")
    text, limits = figure_text(figure, 3, signed=True), (figure or {}).get("interval")
    return f"**{text}**" if limits and None not in limits and (limits[0] > 0 or limits[1] < 0) else text


def _p_value(row: Row) -> str:
    value = ((row["differences"].get("best_baseline") or {}).get("mean_case_ap") or {}).get("p_value")
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _seconds(row: Row) -> str:
    return "-" if row.get("seconds_to_analyse") is None else f"{row['seconds_to_analyse']:.2f}"


def _name(row: Row) -> str:
    return row["model"] + (" *" if row["calibration"]["kind"] == "set" else "")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines)]
    )


def _flat(entry: Mapping[str, Any], row: Row) -> dict[str, Any]:
    flat = {key: row.get(key) for key in _ABOUT}
    flat |= {"split": entry.get("split"), "calibration": row["calibration"]["kind"]}
    for key, figure in row["figures"].items():
        flat |= _with_limits(key, figure)
    for name, point in row["points"].items():
        flat |= {f"threshold_{name}": point["threshold"]}
        for key, figure in point["figures"].items():
            flat |= _with_limits(f"{key}_{name}", figure)
    for name, found in row["thresholds"].items():
        if found:
            flat |= _with_limits(f"dice_at_{name}", found["dice"])
    for name, differences in row["differences"].items():
        for key, figure in differences.items():
            if key != "reference":
                flat |= _with_limits(f"{key}_minus_{name}", figure)
                flat[f"{key}_minus_{name}_p"] = figure.get("p_value")
    return flat | {key: (row.get("verdict") or {}).get(key) for key in ("beats_intensity", "beats_atlas")}


def _with_limits(name: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    low, high = figure.get("interval") or (None, None)
    return {name: figure["value"], f"{name}_low": low, f"{name}_high": high}
