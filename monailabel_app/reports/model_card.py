"""A model folder's card.md, written from its own configuration, calibration and measured tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_POINTS = ("sensitive", "balanced", "specific")


def detection_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of detectors, best average precision first."""
    lines = [
        "| detector | AP | AUROC | best Dice (oracle) | mean AP per case [95 %] | Dice at balanced |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: -r["average_precision"]):
        low, high = row["mean_case_ap_interval"]
        # Resampling one case returns that case: an interval of no width would pass for certainty.
        interval = f" [{low:.3f}, {high:.3f}]" if row["cases"] > 1 else " (one case)"
        at_point = f"{row['dice_at_balanced']:.3f}" if row["dice_at_balanced"] is not None else "-"
        lines.append(
            f"| {row['name']} | {row['average_precision']:.3f} | {row['auroc']:.3f} | {row['best_dice_oracle']:.3f} | "
            f"{row['mean_case_ap']:.3f}{interval} | {at_point} |"
        )
    return "\n".join(lines)


def operating_point_table(calibration: Mapping[str, Any], smoothing: str = "standard") -> str:
    """A Markdown table of the thresholds of every score at one smoothing."""
    lines = [
        "| score | operating point | threshold (healthy SD) | measured rate [95 %] | worst healthy scan |",
        "|---|---|---|---|---|",
    ]
    for score, entry in calibration["scores"].items():
        for name in _POINTS:
            point = entry["points"][smoothing][name]
            low, high = point["interval"]
            lines.append(
                f"| {score} | {name} ({100 * point['target_fpr']:g} %) | {point['threshold']:.2f} | "
                f"{100 * point['measured_fpr']:.2f} % [{100 * low:.2f}, {100 * high:.2f}] | "
                f"{100 * point['worst_fpr']:.2f} % |"
            )
    return "\n".join(lines)


def beats_baselines(rows: Sequence[Mapping[str, Any]], model_id: str) -> str:
    """One sentence: whether the model's best row is above the best row of each baseline, in average precision."""
    best: dict[str, float] = {}
    for row in rows:
        kind = "model" if row["name"].startswith(f"{model_id} ") else " ".join(row["name"].split()[:2]).rstrip(",")
        best[kind] = max(best.get(kind, 0.0), row["average_precision"])
    own = best.pop("model", 0.0)
    parts = [f"{'above' if own > value else 'NOT above'} {name} ({value:.3f})" for name, value in best.items()]
    return f"Best average precision of this model {own:.3f}: {', '.join(parts)}."


def _continued(training: Mapping[str, Any]) -> str:
    """Where the weights started, when that was an earlier run and not a random draw."""
    first = training.get("continued_from")
    return f", continuing the averaged weights of {first['steps']} steps in {first['minutes']} minutes" if first else ""


def model_card(
    model_id: str, config: Mapping[str, Any], calibration: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping]]
) -> str:
    """The card: intended use, data, training, calibration, every measured row, limits."""
    data, training = config["training_data"], config["training"]
    count = calibration["healthy"]["scans"]
    diffusion, method = config["config"]["diffusion"], config["config"]
    measured = "\n\n".join(
        f"### {name}\n\n{beats_baselines(rows, model_id)}\n\n{detection_table(rows)}" for name, rows in tables.items()
    )
    return f"""# {model_id}

{config["description"]}. Method: `{config["method"]}` ({config["paper"]}).

**Intended use**: research on unsupervised detection of brain anomalies in {config["modality"].upper()} head scans of adults,
read by people who look at the scan itself. Not a medical device; not for diagnosis, screening or treatment.

## Data

Trained on {data["scans"]} healthy scans: {data["name"]}. Licence of the data: {data["licence"]}; these weights are derived
from it and carry the same licence. Calibrated on {count} further healthy scans of the same set,
which trained nothing.

## Method

Axial 2 mm slices in template space; {diffusion["noise"]} noise, {diffusion["prediction"]} prediction, {diffusion["loss"]} loss,
{diffusion["schedule"]} schedule. Reconstruction in {method["chain_steps"]} step from sqrt(alpha-bar) {method["levels"]},
{method["draws"]} noise draws per level, averaged; the residual's variation over more than about
{config["illumination_mm"]:g} mm (coil and gain) is taken out. Trained for {training["steps"]} steps of
{training["batch_size"]} slices in {training["minutes"]} minutes{_continued(training)}. Differences from the papers: a compact network on 2 x 2 pixel
blocks, noise levels drawn from {diffusion["train_levels"]} only, several draws averaged, signed residuals, voxel-wise
calibration.

## Operating points (standard smoothing)

Thresholds from held-out healthy scans, each standardised without itself. The rate is the share of brain voxels above the
threshold.

{operating_point_table(calibration)}

## Measured

AP: average precision over brain voxels of all cases together. "Best Dice" knows the labels and is an upper bound. Baselines at
four smoothings each, with the same rim of the brain cut off. "intensity z": z-score within the scan. "atlas z": voxel-wise z-score among the training brains.

{measured}

## Limits

- The implanted lesions are synthetic in intensity (real shapes, 10 to 40 % darker or brighter, blurred edge), and sit in
  scans of the same scanner as the training data. On other scanners expect more false positives: calibrate on healthy scans
  of your own (`python main.py calibrate`).
- {count} calibration scans: the smallest possible p-value of a scan is 1/{count + 1}, and the `specific` rate rests on few voxels.
- Lesions of iso-intense texture, deformation or atrophy without intensity change are not seen. Small and faint ones are missed.
- Adults only; one sequence ({config["modality"].upper()}); contrast-enhanced scans were never shown to it.
- The outermost {config["erosion_mm"]:g} mm of the brain are not scored.
"""
