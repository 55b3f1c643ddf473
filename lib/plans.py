"""From a request to a job: what an analysis would come to, told before it begins, and how the app does it."""

from __future__ import annotations

import atexit
import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from monailabel.config import settings
from monailabel.utils.others.generic import strtobool

from lib.datastore import AnomalyLocalDatastore
from lib.errors import UnknownImage
from lib.ids import check_image_id
from lib.job_store import JobStore
from lib.jobs import INFER, Job, Jobs, Plan
from lib.reviewed import tag_of_analysis
from lib.runner import choose_device
from lib.shared_table import stamp_of
from monailabel_app.errors import UnknownModel

if TYPE_CHECKING:
    from lib.app import AnomalyApp
    from lib.infers import AnomalyInferTask

# What the address of a result takes, and what the settings call it.
_IN_ADDRESS = {
    "operating_point": "operating_point",
    "threshold": "threshold",
    "score": "score",
    "smoothing": "smoothing",
    "min_lesion_volume": "min_volume_ml",
    "calibration": "calibration",
    "uncertainty": "uncertainty",
    "seed": "seed",
}
# Characters of a job's parameters as JSON, and of one of them where they are too many.
MOST_PARAMS, _LONGEST_TOLD = 4000, 100
# Options that change what is kept beside the analysis.
_KEPT_AS = ("save_label", "label_tag")


def jobs_for(app: AnomalyApp) -> Jobs:
    """The jobs of an app. Cheap: MONAI Label builds an app in each of its sub-processes, too."""
    # Here, because the addresses need this module.
    from lib.endpoints.guard import describe

    return Jobs(
        app.runner.lines,
        check=lambda image, model, params: plan_of(app, image, model, params),
        work=lambda job: _analyse(app, job),
        describe=lambda error: describe(error)[1],
    )


@contextmanager
def recorded(app: AnomalyApp, request: Mapping[str, Any], image: str) -> Iterator[Job]:
    """A request to /infer as a job. image: its id in the datastore, empty for an upload. Raises AnomalyAppError."""
    model = str(request["model"])
    task = _task(app, model)
    plan, values = _read(task, model, request)
    if image:
        plan = replace(plan, result=result_address(image, task.entry.name, request, values))
    params = {key: value for key, value in request.items() if key not in {"model", "image"}}
    if len(json.dumps(params, default=str)) > MOST_PARAMS:
        # Told to whoever lists the jobs, for as long as they are kept: the settings are enough.
        params = {key: params[key] for key in _IN_ADDRESS if key in params and len(str(params[key])) <= _LONGEST_TOLD}
    with app.jobs.record(INFER, model, image, params, plan=plan) as job:
        yield job


def plan_of(app: AnomalyApp, image: str, model: str, params: Mapping[str, Any]) -> Plan:
    """What an analysis of a stored image comes to. Raises AnomalyAppError for what cannot work."""
    check_image_id(image)
    tag_of_analysis(params)
    task = _task(app, model)
    plan, values = _read(task, model, params)
    datastore, stamp = app.datastore(), ""
    if isinstance(datastore, AnomalyLocalDatastore):
        path = datastore.get_image_uri(image)
        if not path or not Path(path).exists():
            raise UnknownImage(f"no image {image[:80]!r} in the datastore: upload it first")
        stamp = stamp_of(path)
    elif image not in datastore.list_images():
        # Not fetched here: that is for the job, when its turn comes.
        raise UnknownImage(f"the archive has no image {image[:80]!r}")
    # What replaces the scan or the model gives another result: a job that has begun is not that one's.
    basis = {"stamp": stamp, "version": str(task.entry.folder), "site": task.calibration()}
    equal = {"image": image, "model": model, "device": plan.device, **basis, **values}
    equal |= {key: str(params[key]) for key in _KEPT_AS if key in params}
    return replace(
        plan,
        equal=json.dumps(equal, sort_keys=True, default=str),
        # Of bands it is the model's: they are among its images.
        result=result_address(image, task.entry.name, params, values),
    )


def result_address(image: str, model: str, params: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Where the result of an analysis is: only what was asked for is in the address. values: as they were read."""
    query = {"model": model}
    for name, key in _IN_ADDRESS.items():
        value = values.get(key)
        if params.get(name) not in (None, "") and value is not None:
            query[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return f"{settings.MONAI_LABEL_API_STR}/anomaly/results/{quote(image, safe='')}?{urlencode(query)}"


def keep_jobs(app: AnomalyApp) -> None:
    """Submitted jobs outlive the server, unless ``--conf keep_jobs false``; those of before go on, in a thread."""
    if not strtobool(str(app.conf.get("keep_jobs", "true"))):
        return
    about = hashlib.sha256(str(app.studies).encode()).hexdigest()[:8]
    store = JobStore(Path(app.app_dir) / "cache" / f"jobs_{about}.json")
    threading.Thread(target=app.jobs.keep_in, args=(store,), name="jobs of before", daemon=True).start()


def end_with_server(jobs: Jobs) -> None:
    """Cancel everything as soon as the server is told to end; it would wait for the end of every analysis otherwise."""
    atexit.register(jobs.close)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if not callable(before):
            continue

        def handler(signum: int, frame: Any, before: Any = before) -> Any:
            # In a thread of its own: a handler may have interrupted whoever holds the lock of the jobs.
            threading.Thread(target=jobs.close, name="jobs are cancelled", daemon=True).start()
            return before(signum, frame)

        with suppress(ValueError):
            signal.signal(number, handler)


def _task(app: AnomalyApp, model: str) -> AnomalyInferTask:
    tasks = app.tasks()
    if model not in tasks:
        there_is = ", ".join(tasks) or "none"
        raise UnknownModel(f"no model {model[:80]!r} on this server; available: {there_is}")
    return tasks[model]


def _read(task: AnomalyInferTask, model: str, params: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    values = task.read(params)
    device = choose_device(params.get("device"))
    return Plan(device, cost=(model, device, "repeats" if values.get("uncertainty") else "")), values


def _analyse(app: AnomalyApp, job: Job) -> None:
    result = app.infer({**job.params, "model": job.model, "image": job.image}, progress=job.tell)
    # The label is for viewers that wait for it; what a job leaves is kept by the analysis itself.
    Path(result["file"]).unlink(missing_ok=True)
