"""The card of a shipped model: its method in the words of its module, its data, what was measured, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .comparison import figure_of, figure_text
from .fairness_table import fairness_section
from .point_table import operating_point_table
from .verdicts import row_of

# Figure, title, digits, and whether it is read at the balanced operating point.
_FIGURES = (
    ("pooled_ap", "AP, pooled", 3, False),
    ("best_dice_oracle", "best Dice (oracle)", 3, False),
    ("dice", "Dice at balanced", 3, True),
    ("recall", "lesion recall", 2, True),
    ("false_positives_per_scan", "false positives per scan", 1, True),
    ("rodeo", "RoDeO", 3, True),
    ("scan_auroc", "scan AUROC", 3, False),
    ("healthy_false_ml", "healthy false volume, ml", 1, True),
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
    measured: Mapping[str, Any],
    tables: Sequence[Mapping[str, Any]],
    default_for: Sequence[str] = (),
    fairness: Mapping[str, Any] | None = None,
) -> str:
    """Markdown. about: the docstring of the method's module. measured: of ``measured_record``.

    tables: the ``sets`` of an evaluation's record. default_for: the sequences that the model is offered first for.
    fairness: the record of ``fairness``.
    """
    data, training = config["training_data"], config.get("training") or {}
    sequence = _SEQUENCES.get(config["modality"], f"{config['modality'].upper()} head scans")
    names = {entry["name"] for entry in measured["sets"]}
    shown = [_measured(model_id, table) for table in tables if table["name"] in names]
    first = f"\n\nOffered first for {' and '.join(default_for)}." if default_for else ""
    return f"""# {model_id}
{_warnings(measured)}
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
"Best Dice" knows the labels: the best of one threshold for the whole map; "balanced" is the operating point of 1 %
healthy voxels. The whole table, every method beside both baselines: `tests/benchmarks/results/evaluation.md`.

{chr(10).join(shown) or "Not measured yet."}
{_blind_spots(measured["blind_spots"])}{_fairness(fairness, model_id)}
## Operating points (standard smoothing)

{operating_point_table(calibration)}

## Limits

{chr(10).join(_limits(config, calibration))}
"""


def _warnings(measured: Mapping[str, Any]) -> str:
    """First of all what the model is not better than."""
    lines = "\n".join(f"> - {sentence}" for sentence in measured["warnings"])
    return f"\n> **Not better than a simple baseline, as far as was measured:**\n>\n{lines}\n" if lines else ""


def _measured(model_id: str, table: Mapping[str, Any]) -> str:
    own = row_of(model_id, table)
    names = [own["differences"][key]["reference"] for key in ("intensity", "atlas") if key in own["differences"]]
    found = [row_of(name, table) for name in dict.fromkeys(names) if name != model_id]
    rows = sorted([own, *(row for row in found if row)], key=lambda row: -(row["figures"]["pooled_ap"]["value"] or 0))
    shown = [column for column in _FIGURES if any(figure_of(row, column[0], column[3]) for row in rows)]
    lines = [
        "| model | score | " + " | ".join(title for _, title, _, _ in shown) + " | seconds |",
        "|---|---|" + "---|" * (len(shown) + 1),
    ]
    for row in rows:
        cells = " | ".join(figure_text(figure_of(row, key, at_point), digits) for key, _, digits, at_point in shown)
        seconds = row.get("seconds_to_analyse")
        lines.append(f"| {row['model']} | {row['score']} | {cells} | {'-' if seconds is None else f'{seconds:.1f}'} |")
    cases = table["cases"]
    return (
        f"### {table['title']} ({cases} case{'s' if cases != 1 else ''})\n\n{own['verdict']['sentence']}\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _blind_spots(found: Sequence[Mapping[str, Any]]) -> str:
    """What the self-tests say that the model does not see."""
    parts = []
    for entry in found:
        told = "\n".join(f"- {sentence}" for sentence in entry["sentences"])
        parts.append(f"In {entry['scans']} healthy scans of `{entry['data']}`, point `{entry['point']}`:\n\n{told}\n")
    if not parts:
        return ""
    about = (
        "What `python main.py selftest` found that the model misses among synthetic anomalies put into healthy scans."
    )
    return f"\n## Blind spots\n\n{about}\n\n" + "\n".join(parts)


def _fairness(record: Mapping[str, Any] | None, model_id: str) -> str:
    section = fairness_section(record, model_id) if record else ""
    return f"\n{section}\n" if section else ""


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
