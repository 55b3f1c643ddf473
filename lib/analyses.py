"""What was found in an image of the datastore, for every endpoint that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.infers import AnomalyInferTask
from lib.scoring.sequences import default_model, sequence_of
from monailabel_app.errors import UnknownModel
from monailabel_app.types import Finding, Volume

RECORDS = "anomaly"


@dataclass(frozen=True)
class Analysed:
    """An image of the datastore and what a model found in it.

    path: the scan's file, or the folder of its DICOM series. model: loaded, with the calibration that was used; its
    network is not to be run.
    """

    image: str
    path: Path
    volume: Volume
    finding: Finding
    task: AnomalyInferTask
    model: Any


def model_of(image: str, datastore: Datastore, tasks: Mapping[str, AnomalyInferTask]) -> str:
    """The model of the newest record of an image, else the default of its sequence. Raises UnknownModel."""
    info = datastore.get_image_info(image) or {}
    records = info.get(RECORDS)
    records = records if isinstance(records, Mapping) else {}
    known = {name: record for name, record in records.items() if name in tasks and isinstance(record, Mapping)}
    if known:
        return max(known, key=lambda name: str(known[name].get("time", "")))
    sequence = sequence_of(image, info)
    chosen = default_model({name: task.entry for name, task in tasks.items()}, sequence)
    if chosen is None:
        raise UnknownModel(f"no model for {sequence} scans on this server; name one of: {', '.join(tasks) or 'none'}")
    return chosen
