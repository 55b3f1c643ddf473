"""Pictures of the best and the worst cases, in the fixed colours of the healthy tails."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import AnomalyAppError
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.reports.overlay import three_planes_png

from .analyses import read_analysis
from .cases import on_grid_of
from .differences import default_protocol
from .measure import Measurement, plan_of
from .own_folder import release
from .reading import Protocol, Reader, marked
from .tasks import Task

_LOG = logging.getLogger(__name__)
_POINT = "balanced"
FOLDER = "pictures"


def make_pictures(record: dict[str, Any], shown: Sequence[tuple[Task, Measurement]], cache: Path) -> dict[str, bytes]:
    """PNG files by name for the examples of some models, whose ``picture`` they become.

    The map is the one that was measured, with the statistics that left the patient out where that was the case.
    """
    pictures: dict[str, bytes] = {}
    for task, measurement in shown:
        about = measurement.record["set"]
        entry = next((e for e in record["sets"] if (e["name"], e["split"]) == (about["name"], about["split"])), None)
        examples = [e for e in entry["examples"] if e["model"] == task.model.id] if entry else []
        if not examples:
            continue
        plan = plan_of(task, cache)
        try:
            reader = Reader(plan)
            for number, example in enumerate(examples):
                name = f"{FOLDER}/{_plain(task.model.id)}-{_plain(about['name'])}-{example['kind']}-{number}.png"
                pictures[name] = _picture(reader, task, measurement, example["id"])
                example["picture"] = name
        except AnomalyAppError as error:
            _LOG.warning("no pictures of %s: %s", task.title, error)
        finally:  # the raw maps of an ensemble's healthy scans
            release(plan.keep)
    return pictures


def _picture(reader: Reader, task: Task, measurement: Measurement, name: str) -> bytes:
    found = default_protocol(measurement.record)
    about = measurement.record["protocols"][found]
    kind = about["calibration"]["kind"]
    protocol = Protocol(
        about["score"], about["smoothing"], "set" if kind == "set" else "own", bool(about["leave_one_out"])
    )
    case = next(case for case in task.scans[len(reader.plan.healthy) :] if case.id == name)
    loaded, scan = case.load(), read_analysis(reader.model, case, reader.plan.cache, own=not protocol.by_set)
    values = reader.calibrated(loaded, scan, protocol)
    told = next(entry for entry in about["cases"] if entry["id"] == name)
    return three_planes_png(
        loaded.prepared.image,
        np.maximum(on_grid_of(loaded, values, scan.prepared), 0),
        loaded.gt_mask,
        marked(loaded, scan, delineated(values, scan.prepared.spacing_mm), told["points"][_POINT]["threshold"]),
        loaded.prepared.model_affine,
        dict(zip(TAIL_SHARES, about["froc_thresholds"], strict=True)),
    )


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@-]+", "_", text)
