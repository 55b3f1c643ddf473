"""card.md of a model trained on the healthy scans of a site: what it learnt from, how it was compared, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .point_table import operating_point_table


def site_card(
    name: str,
    config: Mapping[str, Any],
    calibration: Mapping[str, Any],
    training: Mapping[str, Any],
    quality: Mapping[str, Any],
    privacy: Mapping[str, Any] | None,
) -> str:
    """The card as Markdown.

    config: config.yaml. calibration: calibration.json. training: the manifest's facts that hold no hashes: train_scans,
    train_patients, held_out_scans, held_out_patients, start_from, contaminated, left_out, settings, seed, date.
    quality: held-out figures with what they were compared with; empty where none were taken. privacy: the budget
    spent, or None.
    """
    parts = [
        f"""# {name}

{config["description"]}. Method: `{config["method"]}` ({config["paper"]}).

**Intended use**: research on unsupervised detection of brain anomalies in {config["modality"].upper()} head scans like those
it was trained on. Not a medical device; not for diagnosis, screening or treatment.

## Data

Trained on {training["train_scans"]} scans of {training["train_patients"]} patients that somebody at this site called healthy;
{training["held_out_scans"]} scans of {training["held_out_patients"]} further patients were held out. Nobody drew a lesion.
{_left_out(training)}Patients are recorded in `training.json` as keyed hashes only.

## Training

{_run(training)}"""
    ]
    parts.append(_privacy(privacy) if privacy else _calibration(calibration))
    if quality:
        parts.append(_quality(quality))
    parts.append(_limits(calibration, config, bool(privacy)))
    return "\n\n".join(parts) + "\n"


def _left_out(training: Mapping[str, Any]) -> str:
    counts = dict(training["left_out"])
    if training["contaminated"]:
        counts["called healthy but with a non-empty label"] = training["contaminated"]
    if not counts:
        return ""
    return "Left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) + ".\n"


def _calibration(calibration: Mapping[str, Any]) -> str:
    return f"""## Operating points (standard smoothing)

Thresholds from the {calibration["healthy"]["scans"]} held-out scans, each standardised without itself. The rate is the share of
brain voxels above the threshold.

{operating_point_table(calibration)}"""


def _run(training: Mapping[str, Any]) -> str:
    settings = training["settings"]
    if settings["steps_done"] == 1:
        return f"Computed from these scans in one pass, finished {training['date']}."
    start = training["start_from"] or "random weights"
    return (
        f"Started from {start}; {settings['steps_done']} steps of {settings['batch_size']} slices in\n"
        f"{settings['training_minutes']:g} minutes, seed {training['seed']}, finished {training['date']}."
    )


def _privacy(privacy: Mapping[str, Any]) -> str:
    return f"""## Differential privacy

Fine-tuned with differential privacy; the unit is the patient: a patient's slices are averaged before clipping.

- epsilon {privacy["epsilon"]:.3g} at delta {privacy["delta"]:g} (Renyi accountant, Poisson sampling); Gaussian-DP mu
  {privacy["mu"]:.3g} (reported beside it: Dong et al. 2022).
- noise multiplier {privacy["noise_multiplier"]:.3g}, clipping norm {privacy["max_grad_norm"]:g}, sampling rate
  {privacy["sample_rate"]:.4g}, {privacy["steps"]} steps.
- The thresholds are those of the public weights it started from. Thresholds or figures of the private scans would be
  statistics outside the budget, so none is in this folder; the check by membership inference is in the run folder."""


def _quality(quality: Mapping[str, Any]) -> str:
    rows = [("this version", quality)]
    if quality.get("compared_with"):
        rows.append((f"before: {quality['compared_with']['model_id']}", quality["compared_with"]))
    lines = ["| model | mean AP per scan [95 %] | AP | sensitivity at 1 % healthy voxels |", "|---|---|---|---|"]
    for label, values in rows:
        low, high = values["mean_ap_interval"]
        lines.append(
            f"| {label} | {values['mean_ap']:.3f} [{low:.3f}, {high:.3f}] | {values['pooled_ap']:.3f} | "
            f"{values['sensitivity']:.3f} |"
        )
    note = f"\n\nNote: {quality['note']}." if quality.get("note") else ""
    table = "\n".join(lines)
    return f"""## Held-out comparison

Synthetic lesions implanted into the held-out healthy scans, the same for every model in the table. It tells which of two
models is better on this site's scans; it does not tell how many real lesions are found.

{table}{note}"""


def _limits(calibration: Mapping[str, Any], config: Mapping[str, Any], private: bool) -> str:
    scans = calibration["healthy"]["scans"]
    lines = [
        "- What the training scans had in common (age, scanner, sequence, and any abnormality that nobody noticed) is "
        "normal to this model.",
        f"- The outermost {config['erosion_mm']:g} mm of the brain are not scored.",
        "- Lesions without a change of intensity are not seen; small and faint ones are missed.",
    ]
    if not private:
        lines.insert(
            1,
            f"- {scans} calibration scans: the smallest possible p-value of a scan is 1/{scans + 1}"
            + (", and the thresholds are rough." if scans < 20 else "."),
        )
    return "## Limits\n\n" + "\n".join(lines)
