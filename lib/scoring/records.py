"""What is kept of an analysis in its scan's information: one small record per model, whoever asked for the analysis.

A record lies under ``anomaly`` of the scan's information, by the name of the model: score, p_value, threshold, lesions
(their number), volume_ml, gate, drift; or, of a scan that could not be analysed, error (a sentence) and kind. Beside
them model, hash, calibration, settings, seconds, time (UTC) and ``basis``: a short name of the model's files, the
calibration, the settings and the scan's file together. A record is current while its basis is what an analysis would
have now; without a basis it never is, and the scan is analysed again.

A scan's state is told by the newest of its records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.errors import ArchiveUnreachable, ServerBusy
from lib.infers import AnomalyInferTask
from lib.scoring.base import keep
from lib.shared_table import stamp_of
from monailabel_app.errors import AnomalyAppError, CorruptModel
from monailabel_app.pipelines.calibration_choice import OWN
from monailabel_app.types import to_json
from monailabel_app.weights.model_folder import result_hash

KEY = "anomaly"
# What another try may mend; anything else stays as it is until the scan, the model or the settings change.
_PASSING = (ArchiveUnreachable, ServerBusy, CorruptModel)
_NOT_SETTINGS = frozenset({"uncertainty", "device"})
_MOST_REASONS = 3


class Basis:
    """What a record of a model rests on, apart from the scan. calibration: the id of the one that is asked for.

    given: a request, of which the settings are read.
    """

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
        # A threshold of one's own is left out where there is none: records of before it was offered stay current.
        self._settings = {
            key: value
            for key, value in values.items()
            if key not in _NOT_SETTINGS and (key != "threshold" or value is not None)
        }

    def of(self, stamp: str) -> str:
        """A short name of the model, its calibration, the settings and the scan's file (``stamp_of``) together."""
        parts = [*self._decides, self._settings, stamp]
        return hashlib.sha256(json.dumps(to_json(parts), sort_keys=True).encode()).hexdigest()[:16]

    def is_current(self, record: Mapping[str, Any] | None, stamp: str) -> bool:
        """Whether an analysis now would rest on what this record rests on."""
        return bool(record) and record.get("basis") == self.of(stamp)

    def to_json(self) -> dict[str, Any]:
        """The same for people. hash: as results have it, of the whole folder."""
        return {**self._about, "settings": self._settings}


def record_result(
    datastore: Datastore,
    image: str,
    task: AnomalyInferTask,
    request: Mapping[str, Any],
    result: Mapping[str, Any] | Exception,
    seconds: float,
    path: str,
    *,
    basis: Basis | None = None,
    stamp: str | None = None,
) -> dict[str, Any] | None:
    """Keep a record of what ``task`` found in a scan of the datastore, or of the error that it ended in.

    request: what was asked for, for its settings. result: as ``Finding.to_json`` gives it. path: the file that was
    analysed. basis: where it is at hand. stamp: of the file before the analysis (``stamp_of``); by default as it is.

    Returns the record; None, and nothing is kept, where the scan is gone or is another file by now.
    """
    now = stamp_of(path)
    if not now or (stamp is not None and stamp != now):
        return None
    basis = basis or Basis(task, request)
    error = result if isinstance(result, Exception) else None
    record = {
        **(_broken(error) if error is not None else _summary(result)),
        **basis.to_json(),
        "seconds": round(float(seconds), 1),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    passing = error is not None and (not isinstance(error, AnomalyAppError) or isinstance(error, _PASSING))
    if error is None:
        # Another one may be used since the work began: said as it is, and made again by the next run.
        record["calibration"] = (result.get("calibration") or {}).get("id", basis.calibration)
        record["manifest"] = (result.get("manifest") or {}).get("id")
        passing = record["calibration"] != basis.calibration
    record["basis"] = None if passing else basis.of(now)
    record = to_json(record)
    with suppress(AnomalyAppError):
        keep(datastore, image, KEY, {task.entry.name: record}, of=now)
        return record
    return None


def records_of(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The records in a scan's information, by model; whatever else was put there is left out."""
    held = info.get(KEY)
    if not isinstance(held, Mapping):
        return {}
    return {str(model): dict(record) for model, record in held.items() if _is_record(record)}


def _is_record(held: Any) -> bool:
    """Whether lists can sort and show it: what clients put there must not spoil the list of all scans."""
    if not isinstance(held, Mapping):
        return False
    numbers = [held.get(key) for key in ("score", "p_value") if held.get(key) is not None]
    tables = [held.get(key) for key in ("settings", "gate", "drift") if held.get(key) is not None]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers)
    return numeric and all(isinstance(value, Mapping) for value in tables)


def newest_record(records: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """Model and record of the last analysis; None where there was none."""
    if not records:
        return None
    model = max(records, key=lambda name: str(records[name].get("time") or ""))
    return model, records[model]


def anomaly_rank(record: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Sorts the most anomalous scan first; those without a score last.

    By p-value first: scores of different models, scores of voxels and smoothings have no common scale. Equal p-values,
    as of everything beyond the last healthy scan, go by score.
    """
    score, p_value = _number(record, "score"), _number(record, "p_value")
    if score is None:
        return (1.0, 0.0, 0.0)
    return (0.0, 1.0 if p_value is None else p_value, -score)


def known_stamp(info: Mapping[str, Any]) -> str:
    """The stamp of a scan's file without fetching it from an archive: the table knows where it would be."""
    return stamp_of(str(info.get("path") or ""))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result what is worth keeping for each of some thousand scans."""
    gate, drift = result.get("gate"), result.get("drift")
    result = to_json(result)
    return {
        "score": _rounded(result.get("anomaly_score")),
        "p_value": _rounded(result.get("p_value")),
        "threshold": _rounded(result.get("threshold")),
        "lesions": result.get("lesion_count"),
        "volume_ml": _rounded(result.get("anomaly_volume_ml")),
        "drift": drift and {key: drift.get(key) for key in ("distance", "p_value", "drifted")},
        "gate": gate and {"passed": gate["passed"], "reasons": list(gate.get("reasons", ()))[:_MOST_REASONS]},
    }


def _broken(error: Exception) -> dict[str, Any]:
    text = str(error) if isinstance(error, AnomalyAppError) else "the analysis failed; the server's log has the details"
    return {"error": text[:500], "kind": type(error).__name__}


def _number(record: Mapping[str, Any] | None, key: str) -> float | None:
    value = (record or {}).get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _rounded(value: Any) -> float | None:
    return None if value is None else float(f"{float(value):.5g}")
