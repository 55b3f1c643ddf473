"""``anomaly_scores``: an anomaly score for every scan of the datastore that has no current one."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.errors import ArchiveUnreachable, ServerBusy
from lib.infers import AnomalyInferTask
from lib.reviewed import file_stamp
from lib.runner import choose_device
from lib.scoring.base import AppScoring, keep, whole_number
from lib.scoring.progress import DONE, FAILED
from lib.scoring.sequences import default_model, sequence_of
from monailabel_app.errors import AnomalyAppError, CorruptModel, UnknownModel
from monailabel_app.pipelines.calibration_choice import OWN
from monailabel_app.types import to_json
from monailabel_app.weights.model_folder import result_hash

logger = logging.getLogger(__name__)

NAME = "anomaly_scores"
KEY = "anomaly"
_SETTINGS = ("operating_point", "score", "smoothing", "min_lesion_volume", "seed", "input_gate", "calibration")
# What another try may mend; anything else stays as it is until the scan, the model or the settings change.
_PASSING = (ArchiveUnreachable, ServerBusy, CorruptModel)
_NOT_SETTINGS = frozenset({"uncertainty", "device"})
_MOST_REASONS = 3


@dataclass(frozen=True)
class _Wanted:
    """A scan to score: by which model, and whether it has a score that is out of date."""

    image: str
    model: str
    outdated: bool


class AnomalyScores(AppScoring):
    """Writes ``anomaly`` into the scans' information, one entry per model.

    A score is current while the model's files, its calibration, the settings and the scan's file are those it was made
    with. A scan that cannot be analysed is recorded with its error and left alone until one of these changes.
    """

    keys = frozenset({"model", "limit", "device", *_SETTINGS})

    def __init__(self, root: str | Path, tasks: Callable[[], Mapping[str, AnomalyInferTask]]):
        super().__init__(
            NAME,
            "Anomaly score, p-value and volume of every scan without a current one; model: default of the sequence",
            root,
        )
        self._tasks = tasks

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises UnknownModel, InvalidSettings."""
        given = self.known(request)
        tasks = self._tasks()
        name = str(given.get("model") or "")
        if not tasks or (name and name not in tasks):
            there_is = ", ".join(tasks) or "none"
            raise UnknownModel(f"no model {name[:80]!r} on this server; available: {there_is}")
        whole_number("limit", given.get("limit"))
        choose_device(given.get("device"))
        asked = [name] if name else sorted({default_model(_entries(tasks), None)})
        for model in asked:
            tasks[model].read(given)
        return given

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Counts of what was done: analysed, failed, current before, left for the next time, without a model."""
        given = self.check(request, datastore)
        tasks = self._tasks()
        bases = {name: _Basis(task, given) for name, task in tasks.items()}
        wanted, counts = self._wanted(datastore, given, tasks, bases)
        limit = whole_number("limit", given.get("limit"))
        todo = wanted[:limit] if limit else wanted
        counts |= {"analysed": 0, "failed": 0, "left": len(wanted) - len(todo)}
        self.progress.begin(len(todo))
        logger.info("scoring: %d scans to analyse, %d have a current score", len(todo), counts["current"])
        try:
            for number, one in enumerate(todo, start=1):
                failed = self._score(datastore, one, tasks[one.model], bases[one.model], given)
                counts["failed" if failed else "analysed"] += 1
                left = self.progress.step(number, counts["failed"])
                logger.info(
                    "scoring: %d of %d done, %d failed, about %.0f s left", number, len(todo), counts["failed"], left
                )
        except BaseException:
            self.progress.end(FAILED)
            raise
        self.progress.end(DONE, result=counts)
        return to_json(counts)

    def _wanted(
        self,
        datastore: Datastore,
        given: Mapping[str, Any],
        tasks: Mapping[str, AnomalyInferTask],
        bases: Mapping[str, _Basis],
    ) -> tuple[list[_Wanted], dict[str, int]]:
        """The scans without a current score, those that never had one first."""
        entries = _entries(tasks)
        counts, wanted = {"current": 0, "without_model": 0}, []
        for image in sorted(datastore.list_images()):
            info = datastore.get_image_info(image) or {}
            model = str(given.get("model") or "") or default_model(entries, sequence_of(image, info))
            if model is None:
                counts["without_model"] += 1
                continue
            held = (info.get(KEY) or {}).get(model)
            if held and held.get("basis") == bases[model].of(_known_stamp(datastore, info)):
                counts["current"] += 1
            else:
                wanted.append(_Wanted(image, model, bool(held)))
        return sorted(wanted, key=lambda one: one.outdated), counts

    def _score(
        self, datastore: Datastore, one: _Wanted, task: AnomalyInferTask, basis: _Basis, given: Mapping[str, Any]
    ) -> bool:
        """Analyse one scan and keep what came out. Returns whether it failed."""
        began, error, result, path, stamp = time.monotonic(), None, {}, "", ""
        try:
            path = datastore.get_image_uri(one.image)
            stamp = _text(file_stamp(path))
            file, result = task({**given, "image": path})
            Path(file).unlink(missing_ok=True)
        except AnomalyAppError as fault:
            error = fault
            logger.warning("a scan could not be scored: %s", type(fault).__name__)
        except Exception as fault:
            # One scan must not cost the others their scores; another try may find it mended.
            error = fault
            logger.exception("a scan could not be scored")
        if not stamp or stamp != _text(file_stamp(path)):
            # Not fetched, removed, or another file by now: what was found belongs to no scan that is here.
            return True
        record = {
            **(_broken(error) if error is not None else _summary(result)),
            **basis.to_json(),
            "seconds": round(time.monotonic() - began, 1),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        passing = error is not None and (not isinstance(error, AnomalyAppError) or isinstance(error, _PASSING))
        if error is None:
            # Another one may be used since the run began: said as it is, and made again by the next run.
            record["calibration"] = (result.get("calibration") or {}).get("id", basis.calibration)
            passing = record["calibration"] != basis.calibration
        record["basis"] = None if passing else basis.of(stamp)
        # A scan that is gone needs no record.
        with suppress(AnomalyAppError):
            keep(datastore, one.image, KEY, {one.model: to_json(record)})
        return error is not None


class _Basis:
    """What a score of a model rests on, apart from the scan. calibration: the id of the one that is asked for."""

    def __init__(self, task: AnomalyInferTask, given: Mapping[str, Any]):
        entry = task.entry
        try:
            digest = result_hash(entry.folder)
        except CorruptModel:
            digest = ""  # It will not load either; that error is the one to record.
        try:
            values = task.read(given)
        except AnomalyAppError:
            values = {}  # A score that this model does not have: said when the scan is analysed.
        self.calibration = OWN if values.get("calibration") == OWN else task.calibration()
        self._about = {"model": entry.id, "hash": entry.hash, "calibration": self.calibration}
        self._decides = [entry.id, digest, self.calibration]
        self._settings = {key: value for key, value in values.items() if key not in _NOT_SETTINGS}

    def of(self, stamp: str) -> str:
        """A short name of the model, its calibration, the settings and the scan's file together."""
        parts = [*self._decides, self._settings, stamp]
        return hashlib.sha256(json.dumps(to_json(parts), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The same for people. hash: as results have it, of the whole folder."""
        return {**self._about, "settings": self._settings}


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result what is worth keeping for each of some thousand scans."""
    gate, drift = result.get("gate"), result.get("drift")
    result = to_json(result)
    return {
        "score": _rounded(result.get("anomaly_score")),
        "p_value": _rounded(result.get("p_value")),
        "lesions": result.get("lesion_count"),
        "volume_ml": _rounded(result.get("anomaly_volume_ml")),
        "drift": drift and {key: drift.get(key) for key in ("distance", "p_value", "drifted")},
        "gate": gate and {"passed": gate["passed"], "reasons": list(gate.get("reasons", ()))[:_MOST_REASONS]},
    }


def _broken(error: Exception) -> dict[str, Any]:
    text = str(error) if isinstance(error, AnomalyAppError) else "the analysis failed; the server's log has the details"
    return {"error": text[:500], "kind": type(error).__name__}


def _known_stamp(datastore: Datastore, info: Mapping[str, Any]) -> str:
    """The stamp of a scan's file without fetching it from an archive: the table knows where it would be."""
    return _text(file_stamp(str(info.get("path") or "")))


def _text(stamp: tuple[int, int] | None) -> str:
    # As text: 19 digits are more than a browser's numbers hold.
    return "-".join(f"{value:x}" for value in stamp) if stamp else ""


def _entries(tasks: Mapping[str, AnomalyInferTask]) -> dict[str, Any]:
    return {name: task.entry for name, task in tasks.items()}


def _rounded(value: Any) -> float | None:
    return None if value is None else float(f"{float(value):.5g}")
