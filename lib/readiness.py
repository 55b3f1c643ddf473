"""Whether the server has what it needs: its models whole, its scans within reach, room on its disks, work that goes on.

Every check is short and its answer is kept for some seconds, so that a watcher that asks often costs nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.archive_client import fault_of_archive
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.figures import folders, free_bytes
from monailabel_app.errors import AnomalyAppError
from monailabel_app.weights.model_folder import verify

logger = logging.getLogger(__name__)

OK, FAILING = "ok", "failing"
# Below it a label or a result may not fit any more.
LEAST_FREE_BYTES = 256 * 2**20
ARCHIVE_SECONDS = 3.0
# An analysis tells of every step, the longest of which takes a minute or two on a slow machine.
MOST_SILENT_SECONDS = 900.0
_KEPT_SECONDS = {"archive": 15.0, "models": 10.0, "studies": 5.0, "disk": 5.0, "work": 5.0}

_held: dict[tuple[str, int], tuple[float, dict[str, Any]]] = {}
_verified: dict[Path, tuple[tuple, str]] = {}
# One per check: an archive that does not answer must not keep the others waiting.
_locks = {name: threading.Lock() for name in _KEPT_SECONDS}


def works(app: Any) -> bool:
    """Whether the process can do its work at all.

    Not whether all is well: what a restart does not mend (a damaged model, an archive that is away, a full disk) must
    not make a watcher restart it for ever.
    """
    return bool(_tasks(app)) and _answer("studies", _studies, app)["ok"]


def checks(app: Any) -> list[dict[str, Any]]:
    """Name, ``ok`` and, where it fails, what is the matter and what to do."""
    wanted: dict[str, Callable[[Any], str]] = {"models": _models, "studies": _studies, "disk": _disk, "work": _work}
    if isinstance(app.datastore(), AnomalyDICOMWebDatastore):
        wanted["archive"] = _archive
    return [_answer(name, check, app) for name, check in wanted.items()]


def _answer(name: str, check: Callable[[Any], str], app: Any) -> dict[str, Any]:
    key = (name, id(app))
    with _locks[name]:
        held = _held.get(key)
        if held is not None and time.monotonic() - held[0] < _KEPT_SECONDS[name]:
            return held[1]
        try:
            fault = check(app)
        except (OSError, AnomalyAppError) as error:
            fault = f"could not be checked ({type(error).__name__})"
        answer = {"name": name, "ok": not fault} | ({"detail": fault} if fault else {})
        if fault and (held is None or held[1]["ok"]):
            logger.warning("%s: %s", name, fault)
        _held[key] = (time.monotonic(), answer)
        return answer


def _tasks(app: Any) -> dict[str, Any]:
    """The models that serve, without their twins."""
    return {name: task for name, task in app.tasks().items() if name == task.entry.name}


def _models(app: Any) -> str:
    tasks = _tasks(app)
    if not tasks:
        return "no model serves: put one into model_weights/ or model/"
    faults = []
    for name, task in tasks.items():
        folder = task.entry.folder
        try:
            stamp = tuple(
                (file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(folder.iterdir())
            )
            if _verified.get(folder, ((), ""))[0] != stamp:
                _verified[folder] = (stamp, _fault_of(folder))
            fault = _verified[folder][1]
        except OSError as error:
            fault = type(error).__name__
        if fault:
            faults.append(f"{name}: {fault}")
    return f"not as they were published: {'; '.join(faults)}" if faults else ""


def _fault_of(folder: Path) -> str:
    try:
        verify(folder)
    except AnomalyAppError as error:
        return type(error).__name__
    return ""


def _studies(app: Any) -> str:
    path = Path(getattr(app.datastore(), "_datastore_path", "") or ".")
    if not path.is_dir():
        return "the datastore's folder is not there: is its disk mounted?"
    return "" if os.access(path, os.R_OK | os.X_OK) else "the datastore's folder cannot be read by this process"


def _disk(app: Any) -> str:
    short = [f"{name} ({free_bytes(path)[0] // 2**20} MiB)" for name, path in folders(app).items()
             if free_bytes(path)[0] < LEAST_FREE_BYTES]  # fmt: skip
    return f"less than {LEAST_FREE_BYTES // 2**20} MiB free for {', '.join(short)}: main.py purge" if short else ""


def _work(app: Any) -> str:
    """What hangs holds its device for ever, and all that waits for it; it can only be cancelled at its next step."""
    hanging = [(silent, job) for silent, job in app.jobs.silent() if silent > MOST_SILENT_SECONDS]
    named = ", ".join(f"{job.id} ({job.stage}, {silent / 60:.0f} min, on {job.plan.device})" for silent, job in hanging)
    return f"told nothing for long: {named}. Cancel it; where that does not end it, restart the server" if named else ""


def _archive(app: Any) -> str:
    return fault_of_archive(app.datastore().client, ARCHIVE_SECONDS)
