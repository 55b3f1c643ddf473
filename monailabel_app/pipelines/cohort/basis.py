"""What a record rests on: while that is the same, the scan is not analysed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monailabel_app.types import to_json
from monailabel_app.weights.listing import ModelEntry
from monailabel_app.weights.model_folder import calibration_hash, result_hash
from monailabel_app.weights.site_calibrations import used_id

from ..calibration_choice import OWN
from ..predict import PredictSettings

# What does not change a result, or not what a record tells of it; nor does what is not set (None), so that an update
# of the app that brings another such setting leaves the records as they are.
_NOT_DECIDING = ("device", "uncertainty")
_BLOCK = 2**20


@dataclass(frozen=True)
class ModelBasis:
    """A model as it serves when the run begins. hash: of the whole folder, as results have it. deciding: of what
    decides its results. calibration: the id of the one in use, ``shipped`` for the model's own.
    """

    name: str
    folder: Path
    id: str
    hash: str
    deciding: str
    calibration: str

    @classmethod
    def of(cls, entry: ModelEntry, wanted_calibration: str) -> ModelBasis:
        """Raises CorruptModel for a folder without a checksum list."""
        used = used_id(entry.folder) if wanted_calibration != OWN else None
        deciding = f"{result_hash(entry.folder)} {used or calibration_hash(entry.folder)}"
        return cls(entry.name, entry.folder, entry.id, entry.hash, deciding, used or OWN)


def basis_of(model: ModelBasis, settings: PredictSettings) -> str:
    """A short name of model, calibration and settings together; the scan's is its stamp."""
    deciding = {key: value for key, value in asdict(settings).items() if key not in _NOT_DECIDING and value is not None}
    text = json.dumps(to_json([model.id, model.deciding, deciding]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp_of(path: Path) -> str:
    """Changes whenever the file, or a file of the DICOM series, was written; empty for what is not there.

    Cheap: nothing is opened.
    """
    try:
        status = os.stat(path)
        if not os.path.isdir(path):
            return f"{status.st_size:x}-{status.st_mtime_ns:x}"
        digest = hashlib.sha256()
        for entry in sorted(_files(path), key=lambda entry: entry.name):
            status = entry.stat()
            digest.update(f"{entry.name}\0{status.st_size:x}-{status.st_mtime_ns:x}\n".encode())
        return digest.hexdigest()[:24]
    except OSError:
        return ""


def input_hash(path: Path) -> str:
    """sha256 of a file's content, or of the names and contents of a series' files. Raises OSError."""
    if not os.path.isdir(path):
        return _sha256(path)
    digest = hashlib.sha256()
    for entry in sorted(_files(path), key=lambda entry: entry.name):
        digest.update(f"{entry.name}\0{_sha256(Path(entry.path))}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as found:
        return [entry for entry in found if entry.is_file() and not entry.name.startswith(".")]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_current(record: Mapping[str, Any] | None, basis: str, stamp: str) -> bool:
    """Whether a record is of this model, these settings and this very file."""
    return bool(record) and bool(stamp) and record.get("basis") == basis and record.get("stamp") == stamp
