"""The comparison of methods as text: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = (
    ("pooled_ap", "AP, pooled", 3),
    ("mean_case_ap", "AP, mean of cases", 3),
    ("best_dice_oracle", "best Dice (oracle)", 3),
    ("dice", "Dice at balanced", 3),
    ("recall", "lesion recall", 2),
    ("false_positives_per_scan", "false positives per scan", 1),
    ("scan_auroc", "scan AUROC", 3),
    ("healthy_false_ml", "healthy false volume (ml)", 1),
)
# Shown where some model looks at a part of a volume only.
_PART = ("analysed_share", "share of lesions looked at", 2)
_WHOLE = 0.98
_ABOUT = (
    "set", "model", "hash", "method", "modality", "protocol", "score", "smoothing", "calibration", "leave_one_out",
    "default", "cases", "healthy", "seconds_to_prepare", "seconds_to_analyse", "processor_seconds_to_analyse",
    "peak_memory_mb",
)  # fmt: skip


def comparison_markdown(record: Mapping[str, Any]) -> str:
    """All sets as tables, one row per model (default score; ``*`` where the set's own healthy scans calibrate)."""
    parts = [f"# Methods compared\n\n{_preamble(record)}"]
    for entry in record["sets"]:
        rows = [row for row in entry["rows"] if row["default"]]
        if rows:
            parts.append(_set_markdown(entry, rows))
    if record["failed"]:
        lines = "\n".join(f"- {item['model']} on {item['set']}: {item['error']}" for item in record["failed"])
        parts.append(f"## Not measured\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def comparison_csv(record: Mapping[str, Any]) -> str:
    """Every row of every set, all scores, with limits and differences in columns of their own."""
    rows = [row for entry in record["sets"] for row in entry["rows"]]
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(key for row in flat for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _preamble(record: Mapping[str, Any]) -> str:
    quick = "**Quick run: every fifth case only.** " if record["quick"] else ""
    return (
        f"{quick}Measured on the model grid (2 mm), lesion masks resampled to it; voxels of the true brain, where it "
        "is known, else of the extracted one. Default score and standard smoothing of every model. AP: average "
        "precision over brain voxels, of all cases together and as the mean over cases. Best Dice knows the labels: an "
        "upper bound. Dice, recall (any overlap) and false positives at the `balanced` operating point, components "
        "below 0.1 ml dropped; what a model of single levels leaves out of a volume counts as not marked. Healthy "
        "false volume: what is marked in a healthy scan. A scan that calibrated a model is standardised, and "
        "thresholded, without its own person. Brackets: 95 % percentile bootstrap over patients "
        f"({record['resamples']} resamples); differences are paired, and in bold where the interval leaves 0 out. "
        "Seconds and processor seconds (one thread) are medians per scan, preparing not included; measured on a "
        "machine that did other work, so they rank methods and no more."
    )


def _set_markdown(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]
    healthy = f", {first['healthy']} healthy scans" if first["healthy"] else ", no healthy scans of the same source"
    few = "" if first["figures"]["pooled_ap"]["interval"] else " Too few patients for intervals."
    columns = [column for column in _COLUMNS if any(column[0] in row["figures"] for row in rows)]
    if any((row["figures"][_PART[0]]["value"] or 1.0) < _WHOLE for row in rows):
        columns.append(_PART)
    references = [key for key in ("atlas", "ddpm") if any(key in row["differences"] for row in rows)]
    head = ["model", "score", *(title for _, title, _ in columns)]
    head += [f"AP minus {_reference_name(rows, key)}" for key in references]
    head += ["seconds", "processor seconds", "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["model"] + (" *" if row["calibration"] == "set" else ""), row["score"]]
        cells += [_cell(row["figures"].get(key), digits) for key, _, digits in columns]
        cells += [_difference(row["differences"].get(key)) for key in references]
        cells += [f"{row['seconds_to_analyse']:.2f}", f"{row['processor_seconds_to_analyse']:.2f}"]
        cells.append(f"{row['peak_memory_mb']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    star = "\n\n\\* calibrated on the healthy scans of this set instead of its own calibration."
    note = star if any(row["calibration"] == "set" for row in rows) else ""
    return (
        f"## {entry['title']}\n\n`{entry['name']}`: {first['cases']} cases{healthy}; preparing a scan took "
        f"{first['seconds_to_prepare']:.1f} s.{few}\n\n" + "\n".join(lines) + note
    )


def _reference_name(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return next(row["differences"][key]["reference"] for row in rows if key in row["differences"])


def _cell(figure: Mapping[str, Any] | None, digits: int) -> str:
    if figure is None or figure["value"] is None or figure["value"] != figure["value"]:
        return "-"
    text = f"{figure['value']:.{digits}f}"
    limits = figure["interval"]
    return text if not limits or None in limits else f"{text} [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]"


def _difference(differences: Mapping[str, Any] | None) -> str:
    figure = differences["pooled_ap"] if differences else None
    if figure is None or figure["value"] is None or figure["value"] != figure["value"]:
        return "-"
    limits = figure["interval"]
    if not limits or None in limits:
        return f"{figure['value']:+.3f}"
    text = f"{figure['value']:+.3f} [{limits[0]:+.3f}, {limits[1]:+.3f}]"
    return f"**{text}**" if limits[0] > 0 or limits[1] < 0 else text


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: row[key] for key in _ABOUT}
    for key, figure in row["figures"].items():
        flat |= _with_limits(key, figure)
    for name, differences in row["differences"].items():
        for key, figure in differences.items():
            if key != "reference":
                flat |= _with_limits(f"{key}_minus_{name}", figure)
    return flat


def _with_limits(name: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    low, high = figure["interval"] or (None, None)
    return {name: figure["value"], f"{name}_low": low, f"{name}_high": high}
