"""MONAI Label's background tasks (training, scoring, batch inference) as jobs: listed with their progress, and stopped.

MONAI Label keeps them in tables of its own, one running task per kind, and tells only their last lines of output. How
far they are is read from the small files that the processes write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks import utils
from monailabel.utils.async_tasks.task import AsyncTask

from lib import started_by
from lib.errors import NotAllowed, UnknownJob
from lib.jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING
from monailabel_app.types import to_json

TRAIN, SCORING, BATCH = "train", "scoring", "batch_infer"
_STATES = {"SUBMITTED": QUEUED, "RUNNING": RUNNING, "DONE": DONE, "ERROR": FAILED, "STOPPED": CANCELLED}
_LISTED = 20
# The end of a traceback: the error's class with its module, and its text.
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*: (.+)$")
# How a training is divided, roughly; each part has its own steps.
_TRAINING = {"preparing": (0.0, 0.15), "training": (0.15, 0.8), "calibrating": (0.8, 0.95), "evaluating": (0.95, 1.0)}
_NOT_PARAMS = {"model", "gpus", "bundle_path", "images"}


# The highest share told of each running task: a stage that is gone through again must not take the bar back.
_highest: dict[str, float] = {}


class _Line(ThreadPoolExecutor):
    """MONAI Label's line of one kind of task, from which a waiting one can be taken out; it has no way to do that."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._futures: dict[str, Future] = {}

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As ever, but the future is remembered under the id of the task, and who asks for it in its request."""
        if args and isinstance(args[0], Mapping) and isinstance(args[0].get("request"), MutableMapping):
            started_by.mark(args[0]["request"])
        future = super().submit(fn, *args, **kwargs)
        self._futures = {name: held for name, held in self._futures.items() if not held.done()}
        if args and isinstance(args[0], Mapping):
            self._futures[str(args[0].get("id"))] = future
        return future

    def take_out(self, task_id: str) -> bool:
        """Whether the task waited and will not begin now."""
        future = self._futures.get(task_id)
        return future is not None and future.cancel()


def prepare() -> None:
    """Before the first task: give MONAI Label lines from which waiting tasks can be taken out."""
    for kind in (TRAIN, SCORING, BATCH):
        if utils.background_executors.get(kind) is None:
            utils.background_executors[kind] = _Line()


def role_to_stop(kind: str) -> str:
    """The role that MONAI Label asks of whoever stops such a task."""
    return settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR if kind == SCORING else settings.MONAI_LABEL_AUTH_ROLE_ADMIN


def listing(app: MONAILabelApp) -> list[dict[str, Any]]:
    """The tasks as jobs; of each kind the newest."""
    listed = []
    for kind in (TRAIN, SCORING, BATCH):
        tasks = list(utils.tasks(kind))
        waiting = [task["id"] for task in tasks if task["status"] == "SUBMITTED"]
        listed += [_as_job(app, kind, task, waiting) for task in tasks[-_LISTED:]]
    return listed


def find(job_id: str) -> tuple[str, dict[str, Any]] | None:
    """Kind and task of that id, if it is one of MONAI Label's."""
    for kind in (TRAIN, SCORING, BATCH):
        for task in list(utils.tasks(kind)):
            if task["id"] == job_id:
                return kind, task
    return None


def get(app: MONAILabelApp, job_id: str) -> dict[str, Any]:
    """One of them as a job. Raises UnknownJob."""
    for job in listing(app):
        if job["id"] == job_id:
            return job
    raise UnknownJob(f"no job {job_id[:40]!r}: it may be over since long, or of before the server's last start")


def cancel(job_id: str) -> None:
    """Stop a task: the running one as MONAI Label does, a waiting one by taking it out of the line.

    Raises UnknownJob, and NotAllowed for a waiting one that cannot be taken out.
    """
    found = find(job_id)
    if found is None:
        raise UnknownJob(f"no job {job_id[:40]!r}")
    kind, task = found
    executor = utils.background_executors.get(kind)
    if task["status"] == "SUBMITTED" and isinstance(executor, _Line) and executor.take_out(job_id):
        task["status"] = "STOPPED"
        task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    elif task["status"] == "RUNNING" and job_id in utils.processes(kind):
        AsyncTask.stop(kind)
    elif task["status"] in {"SUBMITTED", "RUNNING"}:
        raise NotAllowed("this task is just being started and cannot be stopped now: try again in a moment")


def _as_job(app: MONAILabelApp, kind: str, task: Mapping[str, Any], waiting: list[str]) -> dict[str, Any]:
    request = task.get("request") or {}
    state = _STATES.get(task["status"], FAILED)
    created, finished = _moment(task.get("start_ts")), _moment(task.get("end_ts"))
    now = _progress(app, kind, request) if state == RUNNING else {}
    if now.get("status") not in {RUNNING, *_TRAINING}:
        # The file is of a run before: a process that has gone is not said to be running.
        now = {}
    started = datetime.fromtimestamp(now["started"]).astimezone() if now.get("started") else None
    began = started or (created if state not in {QUEUED, CANCELLED} or finished else None)
    position = None
    if state == RUNNING:
        position = 0
    elif state == QUEUED:
        position = 1 + (waiting.index(task["id"]) if task["id"] in waiting else 0)
    seconds = None
    if began is not None and state != QUEUED:
        seconds = round(((finished or datetime.now().astimezone()) - began).total_seconds(), 1)
    return to_json(
        {
            "id": task["id"],
            "kind": kind,
            "model": str(request.get("model") or request.get("method") or ""),
            "image": "",
            "params": {key: value for key, value in request.items() if key not in _NOT_PARAMS and _is_plain(value)},
            "state": state,
            "position": position,
            "stage": _stage(state, now),
            "progress": 1.0 if state == DONE else _never_falling(task["id"], state, _share(now)),
            "created": _iso(created),
            "started": None if state == QUEUED else _iso(began),
            "finished": _iso(finished),
            "seconds": seconds,
            "error": _error(task) if state == FAILED else None,
            "result": _result(kind, request) if state == DONE else None,
        }
    )


def _progress(app: MONAILabelApp, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    if kind == TRAIN:
        trainer = app.trainers().get(str(request.get("model")))
        return trainer.stats() if trainer is not None else {}
    if kind == SCORING:
        method = app.scoring_methods().get(str(request.get("method")))
        return method.progress.read() if method is not None else {}
    progress = getattr(getattr(app, "_batch_infer", None), "progress", None)
    return progress.read() if progress is not None else {}


def _stage(state: str, now: Mapping[str, Any]) -> str:
    if state != RUNNING:
        return "waiting" if state == QUEUED else state
    if now.get("stage"):
        return str(now["stage"])
    return str(now["status"]) if now.get("status") else "starting"


def _share(now: Mapping[str, Any]) -> float | None:
    """A training goes through the parts of _TRAINING; of other work so many of all steps are done."""
    if now.get("status") in _TRAINING:
        begin, end = _TRAINING[now["status"]]
        share = float(now.get("share") or 0) if now["status"] == "training" else _part(now, "stage_done", "stage_total")
        return begin + (end - begin) * min(1.0, max(0.0, share or 0.0))
    return _part(now, "done", "total")


def _never_falling(task_id: str, state: str, share: float | None) -> float | None:
    if state != RUNNING:
        _highest.pop(task_id, None)
        return share
    if share is not None:
        _highest[task_id] = max(round(share, 4), _highest.get(task_id, 0.0))
    return _highest.get(task_id)


def _part(now: Mapping[str, Any], done: str, total: str) -> float | None:
    return min(1.0, max(0.0, float(now.get(done) or 0) / float(now[total]))) if now.get(total) else None


def _error(task: Mapping[str, Any]) -> str:
    """The last error among the last lines of output; they are what GET /train/ and the like show as well."""
    try:
        lines = [str(line).strip() for line in list(task.get("details") or ())]
    except RuntimeError:
        # A line came in while they were copied.
        lines = []
    for line in reversed(lines):
        found = _ERROR.match(line)
        if found:
            return found[1]
    return "it ended with an error; the server's log has the details"


def _result(kind: str, request: Mapping[str, Any]) -> str | None:
    prefix = settings.MONAI_LABEL_API_STR
    if kind == SCORING and request.get("method") == "evaluate":
        return f"{prefix}/anomaly/evaluation/"
    return None


def _moment(text: Any) -> datetime | None:
    """MONAI Label's time, which is the machine's local one without a word about it."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%d %H:%M:%S").astimezone()
    except ValueError:
        return None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
