"""``main.py selftest``: blind spots, their check through the whole pipeline, and corruptions, as files for the report.

Writes ``blind_spots.json`` (keys: see ``blind_spots``) and ``selftest.csv``, one line per anomaly: kind, size,
contrast, texture, region, place; found, marked and before by operating point.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.files import replace_file
from monailabel_app.preprocessing.corruptions import CORRUPTIONS
from monailabel_app.preprocessing.normalize import HIGH_LEVEL, MEDIAN_LEVEL
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.types import PreparedVolume, Volume, to_json

from ..calibration_choice import SITE
from ..levels import on_grid_of
from ..predict import AnomalyModel, PredictSettings, analyse, load_model, prepare
from .blind_spot_lesions import alter, judge, model_spacing
from .blind_spot_plan import CONTRAST, NOTHING, Placed, fluid_mask
from .blind_spots import SMOOTHING, Job, Reader, SelftestSettings, blind_spots
from .corruption_suite import QUICK, corruption_suite
from .corruption_suite import sentences as corruption_sentences
from .healthy_set import HealthySet, healthy_set

JSON, CSV = "blind_spots.json", "selftest.csv"
QUICK_REPLICATES, QUICK_SCANS = 3, 6
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Extent:
    """What a self-test does. scans: altered ones at most, None for all. checks: heads through the whole pipeline.

    corrupted: heads that are corrupted, 0 for none. wrong: files of a wrong sequence.
    """

    replicates: int = 12
    scans: int | None = None
    checks: int = 3
    corrupted: int = 3
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    wrong: tuple[Path, ...] = ()


FULL = Extent()
SHORT = Extent(QUICK_REPLICATES, QUICK_SCANS, checks=1, corrupted=2, corruptions=QUICK)


def selftest(
    folder: Path,
    healthy: str | Path,
    out: Path,
    cache_folder: Path,
    *,
    extent: Extent = FULL,
    data_root: Path | None = None,
    seed: int = 20,
    workers: int = 2,
    device: str = "cpu",
    calibration: str = SITE,
    command: str = "",
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Test the model in ``folder`` on healthy scans; goes on where an earlier test of the same was interrupted.

    healthy: see ``healthy_set``. calibration: ``site`` or ``shipped``. Raises EvaluationFailed without usable scans
    and what loading raises.
    """
    model = load_model(folder).with_calibration(calibration)
    scans = healthy_set(
        model, healthy, cache_folder, data_root=data_root, scans=extent.scans, workers=workers, stage=stage
    )
    settings = SelftestSettings(extent.replicates, seed, None, device, workers, calibration)
    record, job = blind_spots(model, scans, out, settings, scans=extent.scans, stage=stage)
    record["made"]["command"] = command
    started = time.time()
    raw = bool(scans.heads) and model.levels is None and not model.prepare_settings.bias_field
    if raw and extent.checks:
        record["whole_pipeline"] = whole_pipeline(model, scans, job, record["rows"], heads=extent.checks, stage=stage)
        record["sentences"].append(_about_pipeline(record["whole_pipeline"]))
    if raw and extent.corrupted:
        record["corruptions"] = corruption_suite(
            model,
            scans,
            job,
            cache_folder,
            scans=extent.corrupted,
            names=extent.corruptions,
            given=extent.wrong,
            workers=workers,
            stage=stage,
        )
        record["sentences"] += corruption_sentences(record["corruptions"], record["default_point"])
    record["made"]["seconds"] = round(record["made"]["seconds"] + time.time() - started, 1)
    record = to_json(record)
    write(out, record)
    shutil.rmtree(job.work, ignore_errors=True)
    return record


def whole_pipeline(
    model: AnomalyModel,
    healthy: HealthySet,
    job: Job,
    rows: Sequence[Mapping[str, Any]],
    *,
    heads: int,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """The first analysis of some scans again, with the same anomalies in the raw head instead of the prepared brain.

    The change of the prepared image is carried back onto the head's own grid and scale, so that brain extraction,
    alignment and normalisation meet the altered head as they would meet a patient's.
    """
    reader = Reader(model, job)
    point = "balanced" if "balanced" in rows[0]["points"] else next(iter(rows[0]["points"]))
    threshold = model.calibration.score(job.score).points[SMOOTHING][point].threshold
    cases = []
    chosen = sorted({row["scan"] for row in rows})[:heads]
    for number, scan in enumerate(chosen):
        run = min(row["run"] for row in rows if row["scan"] == scan)
        own = [row for row in rows if row["run"] == run]
        placed = [Placed.from_json(row) for row in own]
        head = healthy.head(scan)
        prepared = prepare(head, model, job.device)
        fluid = fluid_mask(on_grid_of(model.template.regions, model.template, prepared))
        changed, places = alter(prepared, placed, fluid, seed=job.seed)
        again = prepare(altered_head(head, prepared, changed), model, job.device)
        settings = PredictSettings(device=job.device)
        maps = [reader.calibrated(analyse(one, model, settings), scan) for one in (prepared, again)]
        verdicts = judge(maps[0], maps[1], places, {point: threshold}, model_spacing(prepared))
        for row, verdict in zip(own, verdicts, strict=True):
            about = {name: row[name] for name in ("scan", "number", "kind", "volume_ml", "contrast", "texture")}
            cases.append({**about, "model_grid": row["points"][point], "raw_head": verdict["points"][point]})
        if stage is not None:
            stage("whole pipeline", number + 1, len(chosen))
    both = [
        case
        for case in cases
        if case["kind"] != NOTHING and None not in (case["model_grid"]["found"], case["raw_head"]["found"])
    ]
    differences = [abs(case["model_grid"]["marked"] - case["raw_head"]["marked"]) for case in both]
    return {
        "point": point,
        "scans": len(chosen),
        "lesions": len(both),
        "same_verdict": sum(case["model_grid"]["found"] == case["raw_head"]["found"] for case in both),
        "marked_difference": float(np.mean(differences)) if differences else None,
        "recall_model_grid": _share([case["model_grid"]["found"] for case in both]),
        "recall_raw_head": _share([case["raw_head"]["found"] for case in both]),
        "contrast_lesions": sum(case["kind"] == CONTRAST for case in both),
        "cases": cases,
    }


def altered_head(head: Volume, prepared: PreparedVolume, changed: PreparedVolume) -> Volume:
    """The raw head with the change of its prepared image in it, in the head's own grid and intensities."""
    step = next(step for step in prepared.steps if step["step"] == "normalize")
    level = MEDIAN_LEVEL if step["kind"] == "median" else HIGH_LEVEL
    scale = (step["high"] - step["low"]) / level
    change = to_native(changed.image[0] - prepared.image[0], prepared) * np.float32(scale)
    return Volume((head.data + change[None]).astype(np.float32), head.affine, head.name, head.warnings, head.native)


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Both files; the JSON is replaced last and at once."""
    out.mkdir(parents=True, exist_ok=True)
    points = list(record["thresholds"])
    plain = ("number", "kind", "volume_ml", "measured_ml", "contrast", "texture", "region", "structure", "scan", "run")
    shown = ("found", "marked", "before")
    with (out / CSV).open("w", newline="") as handle:
        writer = csv.writer(handle)
        heads = [f"{name}_{point}" for point in points for name in shown]
        writer.writerow(["model", *plain, "x", "y", "z", "rise", *heads])
        for row in record["rows"]:
            verdicts = [row["points"][point][name] for point in points for name in shown]
            values = [*(row[name] for name in plain), *row["centre"], row["rise"], *verdicts]
            writer.writerow([record["model"]["id"], *(_cell(value) for value in values)])
    kept = {name: value for name, value in record.items() if name != "rows"}
    replace_file(out / JSON, json.dumps(kept, indent=1) + "\n")


def _about_pipeline(check: Mapping[str, Any]) -> str:
    return (
        f"Checked through the whole pipeline on {check['scans']} raw heads: the same verdict for "
        f"{check['same_verdict']} of {check['lesions']} anomalies."
    )


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else value
