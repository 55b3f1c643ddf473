"""The card of a shipped model: its method in the words of its module, its data, what was measured, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .model_card import operating_point_table

_BASELINES = ("intensity", "atlas_zscore")
_FIGURES = (
    ("pooled_ap", "AP, pooled"),
    ("best_dice_oracle", "best Dice (oracle)"),
    ("dice", "Dice at balanced"),
    ("recall", "lesion recall"),
    ("false_positives_per_scan", "false positives per scan"),
    ("scan_auroc", "scan AUROC"),
    ("healthy_false_ml", "healthy false volume, ml"),
)
_SEQUENCES = {
    "t1": "T1-weighted head scans",
    "flair": "FLAIR head scans, and single skull-stripped FLAIR slices, at the level of the lateral ventricles only",
    "any": "FLAIR and T2 head scans, whole volumes; no healthy scan of these sequences was at hand",
}


def shipped_card(
    model_id: str,
    config: Mapping[str, Any],
    calibration: Mapping[str, Any],
    about: str,
    tables: Sequence[Mapping[str, Any]],
    default_for: Sequence[str] = (),
) -> str:
    """Markdown. about: the docstring of the method's module. tables: the ``sets`` of a comparison's record.

    default_for: the sequences that the model is offered first for.
    """
    data, training = config["training_data"], config.get("training") or {}
    sequence = _SEQUENCES.get(config["modality"], f"{config['modality'].upper()} head scans")
    measured = [_measured(model_id, table) for table in tables]
    first = f"\n\nOffered first for {' and '.join(default_for)}." if default_for else ""
    return f"""# {model_id}

{config["description"]}. Method: `{config["method"]}` ({config["paper"]}).{first}

**Intended use**: research on unsupervised detection of brain anomalies in {sequence} of adults, read by people who look at
the scan itself. Not a medical device; not for diagnosis, screening or treatment.

## Method

{_paragraphs(about)}

## Data

Trained on {data.get("scans", "?")} healthy scans: {data.get("name", "")}. Licence of the data: {data.get("licence", "")};
these weights are derived from it and carry the same licence. Calibrated on {calibration["healthy"]["scans"]} further scans,
which trained nothing. {_training(training)}

## Measured

Average precision (AP) over brain voxels of all cases together on the 2 mm model grid; 95 % bootstrap intervals over patients.
"Best Dice" knows the labels and is an upper bound; "balanced" is the operating point of 1 % healthy voxels. The whole
table, every method beside both baselines: `tests/benchmarks/results/methods_table.md`.

{chr(10).join(part for part in measured if part) or "Not measured yet."}

## Operating points (standard smoothing)

{operating_point_table(calibration)}

## Limits

{chr(10).join(_limits(config, calibration))}
"""


def verdict(model_id: str, table: Mapping[str, Any]) -> str:
    """One sentence on one set: whether the model's pooled AP is above that of each baseline, with the interval."""
    rows = {row["model"]: row for row in _default_rows(table)}
    own = rows.get(model_id)
    if own is None:
        return ""
    value = own["figures"]["pooled_ap"]["value"]
    parts = []
    for method in _BASELINES:
        others = [r for r in rows.values() if r["method"] == method and r["model"] != model_id]
        if not others:
            continue
        best = max(others, key=lambda r: r["figures"]["pooled_ap"]["value"])
        other = best["figures"]["pooled_ap"]["value"]
        word = "above" if value > other else "NOT above"
        interval = _interval(own, best["model"])
        parts.append(f"{word} {best['model']} ({other:.3f}{interval})")
    return f"AP {value:.3f}: {', '.join(parts)}." if parts else f"AP {value:.3f}."


def _interval(own: Mapping[str, Any], reference: str) -> str:
    for difference in own["differences"].values():
        limits = difference["pooled_ap"]["interval"]
        if difference["reference"] == reference and limits and None not in limits:
            return f"; difference {difference['pooled_ap']['value']:+.3f} [{limits[0]:+.3f}, {limits[1]:+.3f}]"
    return ""


def _measured(model_id: str, table: Mapping[str, Any]) -> str:
    rows = [row for row in _default_rows(table) if row["model"] == model_id or row["method"] in _BASELINES]
    if not any(row["model"] == model_id for row in rows):
        return ""
    shown = [(key, title) for key, title in _FIGURES if any(key in row["figures"] for row in rows)]
    lines = [
        "| model | score | " + " | ".join(title for _, title in shown) + " | seconds |",
        "|---|---|" + "---|" * (len(shown) + 1),
    ]
    for row in sorted(rows, key=lambda r: -(r["figures"]["pooled_ap"]["value"] or 0)):
        cells = " | ".join(_cell(row["figures"].get(key)) for key, _ in shown)
        lines.append(f"| {row['model']} | {row['score']} | {cells} | {row['seconds_to_analyse']:.1f} |")
    cases = rows[0]["cases"]
    return (
        f"### {table['title']} ({cases} case{'s' if cases != 1 else ''})\n\n{verdict(model_id, table)}\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _default_rows(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of every model the row of its default score, with its own calibration where there are two."""
    rows: dict[str, Mapping[str, Any]] = {}
    for row in table["rows"]:
        if row["default"] and (row["model"] not in rows or row["calibration"] == "own"):
            rows[row["model"]] = row
    return list(rows.values())


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    limits = figure["interval"]
    text = f"{figure['value']:.3f}"
    return text if not limits or None in limits else f"{text} [{limits[0]:.3f}, {limits[1]:.3f}]"


def _training(training: Mapping[str, Any]) -> str:
    if training.get("steps", 0) <= 1:
        return "Computed in one pass, not trained."
    return (
        f"Trained for {training['steps']} steps of {training.get('batch_size', '?')} in {training.get('minutes', '?')} "
        "minutes of wall time."
    )


def _limits(config: Mapping[str, Any], calibration: Mapping[str, Any]) -> list[str]:
    count = calibration["healthy"]["scans"]
    lines = [
        f"- {count} calibration scans: no p-value is below 1/{count + 1}, and the `specific` rate rests on few voxels.",
        "- Lesions without a change of intensity (deformation, atrophy) are not seen; small and faint ones are missed.",
        f"- The outermost {config['erosion_mm']:g} mm of the brain are not scored. Adults only.",
    ]
    if config["modality"] == "t1":
        lines.insert(
            0,
            "- Implanted lesions have real shapes, but synthetic intensities, in scans of the scanner of the training "
            "data. On other scanners expect more false positives: calibrate on healthy scans of your own.",
        )
    if config["modality"] == "flair":
        lines.insert(
            0,
            "- Pseudo-healthy: the training slices are of stroke patients, without infarct in that slice; old and white-"
            "matter changes may be in them and pass for normal. Mid-axial level only; other slices are not analysed.",
        )
    if config["modality"] == "any":
        lines.insert(
            0,
            "- The healthy scans behind it are T1 scans painted in other contrasts: thresholds hold for those, real "
            "scans have more variation. Expect more false positives, and calibrate on healthy scans where there are any.",
        )
    return lines


def _paragraphs(about: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (about or "").strip().split("\n\n"))
