"""The unit of work: one scan is read and analysed, what was found becomes one record."""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from monailabel_app.errors import AnomalyAppError, CorruptModel
from monailabel_app.files import replace_file
from monailabel_app.io.images import read_volume, write_labelmap, write_map
from monailabel_app.types import Finding, Volume, to_json

from ..predict import AnomalyModel, PredictSettings, load_model, predict
from .basis import ModelBasis, basis_of, input_hash, stamp_of
from .tables import FLAGGED_P
from .thumbnail import thumbnail

logger = logging.getLogger(__name__)

KEEP = ("none", "masks", "maps")
_LOADED = 2
_MOST_SENTENCES = 4


@dataclass(frozen=True)
class Task:
    """A scan to analyse. known: hash of the content that the last record is of, which still holds where only the
    file's date has changed. before, tries: how often earlier runs and this one began it without a result. out: the
    run's folder. keep: of KEEP, what is written there.
    """

    key: str
    path: str
    sequence: str | None
    model: ModelBasis
    settings: PredictSettings
    out: str
    keep: str = "none"
    known: str = ""
    before: int = 0
    tries: int = 0


class Analyst:
    """Analyses scans on one device, with the models used last in memory. load: for tests."""

    def __init__(self, device: str = "cpu", load: Callable[[Path], AnomalyModel] = load_model) -> None:
        self._device, self._load = device, load
        self._models: OrderedDict[Path, AnomalyModel] = OrderedDict()

    def __call__(self, task: Task) -> dict[str, Any]:
        """The record; one that says why where the scan cannot be analysed. Raises MemoryError."""
        began, worked = time.perf_counter(), time.process_time()
        head = {"scan": task.key, "path": task.path, "sequence": task.sequence, "model": task.model.name}
        stamp = stamp_of(Path(task.path))
        digest = ""
        try:
            with suppress(OSError):  # Reading it says what is wrong.
                digest = input_hash(Path(task.path))
            if task.known and digest == task.known:
                return {**head, "state": "same", "stamp": stamp}
            body = self._analysed(task)
        except torch.cuda.OutOfMemoryError:
            raise MemoryError(f"{self._device} ran out of memory") from None
        except MemoryError:
            raise
        except Exception as error:
            if not isinstance(error, AnomalyAppError):
                logger.exception("a scan could not be analysed")
            body = failed(error)
        return {
            **head,
            **body,
            "input": digest,
            **rests_on(task, stamp),
            "tries": task.before + task.tries + 1,
            # processor: of all threads; on a machine that others use it tells more than the clock.
            "seconds": {
                **body.get("seconds", {}),
                "processor": round(time.process_time() - worked, 2),
                "total": round(time.perf_counter() - began, 2),
            },
            "worker": f"{platform.node()} {self._device}",
            "time": now(),
        }

    def _analysed(self, task: Task) -> dict[str, Any]:
        volume = read_volume(task.path, slices=True)
        loading = time.perf_counter()
        model = self._model(task.model.folder)
        loading = time.perf_counter() - loading
        finding = predict(volume, model, replace(task.settings, device=self._device))
        flagged = bool(finding.lesions) and finding.p_value <= FLAGGED_P
        files = _keep(task, volume, finding)
        picture = thumbnail(volume, finding, model, task.settings) if flagged else None
        if picture is not None:
            files["thumbnail"] = place(task.key, "thumbnails", ".jpg")
            replace_file(_made(Path(task.out) / files["thumbnail"]), picture)
        told = summary(finding)
        told["seconds"]["load_model"] = round(loading, 2)
        return {"state": "analysed", **told, "flagged": flagged, "files": files}

    def _model(self, folder: Path) -> AnomalyModel:
        model = self._models.get(folder)
        if model is None:
            model = self._models[folder] = self._load(folder)
        self._models.move_to_end(folder)
        while len(self._models) > _LOADED:
            self._models.popitem(last=False)
        return model


def summary(finding: Finding) -> dict[str, Any]:
    """Of a finding what is worth keeping for each of many scans."""
    gate, drift = finding.gate, finding.drift
    volumes = [lesion.volume_ml for lesion in finding.lesions]
    return {
        "score": _rounded(finding.anomaly_score),
        "p_value": _rounded(finding.p_value),
        "threshold": _rounded(finding.threshold),
        "lesions": len(volumes),
        "volume_ml": _rounded(sum(volumes)),
        "largest_ml": _rounded(max(volumes, default=0.0)),
        "gate": gate and {"passed": gate.passed, "reasons": list(gate.reasons)[:_MOST_SENTENCES]},
        "drift": drift and {key: drift.get(key) for key in ("distance", "p_value", "drifted")},
        "warnings": list(finding.warnings)[:_MOST_SENTENCES],
        "seconds": {key: round(value, 2) for key, value in finding.seconds.items()},
        "manifest": (finding.manifest or {}).get("id"),
    }


def failed(error: Exception) -> dict[str, Any]:
    """``passing``: another try may mend it; else it stays as it is until scan, model or settings change."""
    named = isinstance(error, AnomalyAppError)
    text = str(error) if named else f"the analysis failed ({type(error).__name__}); run it with predict for the details"
    passing = not named or isinstance(error, CorruptModel)
    return {"state": "failed", "error": text[:500], "kind": type(error).__name__, "passing": passing}


def rests_on(task: Task, stamp: str) -> dict[str, Any]:
    """What the record was made with, for people and for ``basis.is_current``."""
    settings = {key: value for key, value in asdict(task.settings).items() if key != "device"}
    return {
        "model_id": task.model.id,
        "model_hash": task.model.hash,
        "calibration": task.model.calibration,
        "settings": to_json(settings),
        "basis": basis_of(task.model, task.settings),
        "stamp": stamp,
    }


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def place(key: str, kind: str, suffix: str) -> str:
    """Where a scan's file lies in the run's folder: readable, safe for any key, at most some hundred in a folder."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in key.split(".")[0])[-60:]
    return f"{kind}/{digest[:2]}/{readable}_{digest[:10]}{suffix}"


def _keep(task: Task, volume: Volume, finding: Finding) -> dict[str, str]:
    files = {}
    if task.keep in ("masks", "maps"):
        files["mask"] = place(task.key, "masks", ".nii.gz")
        write_labelmap(_made(Path(task.out) / files["mask"]), finding.mask, volume)
    if task.keep == "maps":
        files["map"] = place(task.key, "maps", ".nii.gz")
        write_map(_made(Path(task.out) / files["map"]), finding.anomaly_map, volume)
    return files


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _rounded(value: Any) -> float | None:
    return None if value is None else float(f"{float(value):.5g}")


def unanswered(task: Task, kind: str, text: str, seconds: float, worker: str) -> Mapping[str, Any]:
    """The record of a scan that cost a worker: it crashed, hung, or had no memory left."""
    return {
        "scan": task.key,
        "path": task.path,
        "sequence": task.sequence,
        "model": task.model.name,
        "state": "failed",
        "error": text,
        "kind": kind,
        "passing": True,
        "input": "",
        **rests_on(task, stamp_of(Path(task.path))),
        "tries": task.before + task.tries + 1,
        "seconds": {"total": round(seconds, 2)},
        "worker": worker,
        "time": now(),
    }
