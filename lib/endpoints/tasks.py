"""Training, scoring and batch inference: what cannot work is refused at once, and progress can be seen.

MONAI Label accepts any name with 200 and starts a sub-process, which then fails where nobody looks. Here the name is
checked against the app first, a training also its options and its healthy scans, a scoring its parameters; the work
itself stays MONAI Label's. What it answers about a running task is its last log lines; the progress figures are added.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints import batch_infer, scoring, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks

from lib.endpoints.infer import RESERVED, not_too_deep
from lib.ids import check_tag
from monailabel_app.errors import AnomalyAppError, UnknownModel

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Tasks"])

_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


_STARTING = threading.Lock()
# A start takes moments, with an archive that does not answer 20 s. What is waited for (run_sync) takes hours, and who
# comes then is to have an answer.
_START_SECONDS = 30.0
# MONAI Label puts the folder that it names on the sub-process's path for Python modules.
_FOLDER_OF_PROGRAMS = "bundle_path"
# Scorings that may wait for each other: whoever asks again and again must not fill the line for ever.
_MOST_SCORINGS = 16


@contextmanager
def _starting() -> Iterator[None]:
    """One start at a time. Raises HTTPException where another one does not end."""
    if not _STARTING.acquire(timeout=_START_SECONDS):
        detail = "a training or scoring is just being started, or is waited for (run_sync): try again later"
        raise HTTPException(status_code=429, detail=detail)
    try:
        yield
    finally:
        _STARTING.release()


@router.get("/train/", summary="Progress of the training")
def training_status(all: bool = False, check_if_running: bool = False, user: User = _USER) -> Any:
    """MONAI Label's answer; the newest task also has ``progress``: epoch, loss, images per second, time left."""
    answer = train.status(all, check_if_running)
    listed = answer if isinstance(answer, list) else [answer]
    if not listed:
        return answer
    newest = dict(listed[-1])
    trainer = app_instance().trainers().get(str((newest.get("request") or {}).get("model")))
    if trainer is not None:
        newest["progress"] = trainer.stats()
    return [*listed[:-1], newest] if isinstance(answer, list) else newest


@router.post("/train/", include_in_schema=False)
def run_all_trainings(params: dict | None = None, run_sync: bool = False, user: User = _ADMIN) -> Any:
    """What OHIF's Update Model sends: every trainer the server was started with, one after the other."""
    trainers = app_instance().trainers()
    if not trainers:
        raise UnknownModel("this server was started without trainers; start it with --conf trainers ddpm, or all")
    requests = {
        name: training_request(name, {**(params or {}), **((params or {}).get(name) or {})}) for name in trainers
    }
    answers = {}
    for name, request in requests.items():
        with _starting():
            task, detail = AsyncTask.run("train", request=request, force_sync=run_sync, enqueue=True)
        answers[name] = {"result": task, "detail": detail}
    return answers


@router.post("/train/{model}", summary="Train one model")
def run_training(
    model: str, params: dict | None = None, run_sync: bool = False, enqueue: bool = False, user: User = _ADMIN
) -> Any:
    """Start a training in a process of its own; 429 while another one runs, unless it may wait (``enqueue``)."""
    request = training_request(model, params or {})
    # Two requests at once must not both find that nothing runs.
    with _starting():
        if not enqueue and any(task["status"] in {"SUBMITTED", "RUNNING"} for task in tasks("train")):
            raise HTTPException(status_code=429, detail="a training is running already: wait for it or stop it")
        return train.run_model(model, request, run_sync, enqueue)


@router.get("/scoring/", summary="Progress of the scoring")
def scoring_status(all: bool = False, check_if_running: bool = False, user: User = _USER) -> Any:
    """MONAI Label's answer; the newest task also has ``progress``: scans done, failed, seconds left, the result."""
    answer = scoring.status(all, check_if_running)
    listed = answer if isinstance(answer, list) else [answer]
    if not listed:
        return answer
    newest = dict(listed[-1])
    method = app_instance().scoring_methods().get(str((newest.get("request") or {}).get("method")))
    # Before the process has begun, the file still tells of the run before it.
    if method is not None and newest.get("status") != "SUBMITTED":
        newest["progress"] = method.progress.read()
    return [*listed[:-1], newest] if isinstance(answer, list) else newest


@router.post("/scoring/", include_in_schema=False)
def run_all_scorings(params: dict | None = None, run_sync: bool = False, user: User = _ANNOTATOR) -> Any:
    """Every scoring method, one after the other; one that cannot be done says why."""
    requests, answers = {}, {}
    for name in app_instance().scoring_methods():
        try:
            requests[name] = {"method": name, **scoring_request(name, (params or {}).get(name) or {})}
        except AnomalyAppError as error:
            answers[name] = {"result": None, "detail": str(error)}
    # Counted and taken in one: two requests at once must not both get the last place.
    with _starting():
        if sum(task["status"] in {"SUBMITTED", "RUNNING"} for task in tasks("scoring")) >= _MOST_SCORINGS:
            raise HTTPException(status_code=429, detail="many scorings wait already: wait for them or stop them")
        for name, request in requests.items():
            task, detail = AsyncTask.run("scoring", request=request, force_sync=run_sync, enqueue=True)
            answers[name] = {"result": task, "detail": detail}
    return answers


@router.post("/scoring/{method}", summary="Run one scoring method")
def run_scoring(method: str, params: dict | None = None, run_sync: bool = False, user: User = _ANNOTATOR) -> Any:
    """Start a scoring in a process of its own; 429 while another one runs."""
    request = scoring_request(method, params or {})
    with _starting():
        if any(task["status"] in {"SUBMITTED", "RUNNING"} for task in tasks("scoring")):
            raise HTTPException(status_code=429, detail="a scoring is running already: wait for it or stop it")
        return scoring.run_method(method, request, run_sync)


@router.post("/batch/infer/{model}", summary="Analyse many scans of the datastore")
def run_batch(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict | None = None,
    run_sync: bool = False,
    user: User = _ADMIN,
) -> Any:
    """Start a batch analysis in a process of its own."""
    check_name("model", model, app_instance().info()["models"])
    # MONAI Label lets what is named there replace the model and images of the address.
    left_out = {*RESERVED, "images", _FOLDER_OF_PROGRAMS}
    given = {key: value for key, value in not_too_deep(params or {}).items() if key not in left_out}
    if given.get("label_tag"):
        check_tag(str(given["label_tag"]))
    return batch_infer.run(model, images, given, run_sync)


def training_request(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Exactly what the trainer will read. Raises AnomalyAppError when a training could not begin."""
    app = app_instance()
    trainers = app.trainers()
    check_name("trainer", name, trainers)
    not_too_deep(params)
    left_out = {*trainers, _FOLDER_OF_PROGRAMS}
    request = {key: value for key, value in params.items() if key not in left_out} | {"model": name}
    if request.get("gpus") is not None:
        request["gpus"] = str(request["gpus"])
    trainers[name].check(request, app.datastore())
    return request


def scoring_request(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Exactly what the method will read. Raises AnomalyAppError when it could not begin."""
    app = app_instance()
    methods = app.scoring_methods()
    check_name("scoring method", name, methods)
    return methods[name].check(params, app.datastore())


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises UnknownModel naming what there is."""
    known = list(known)
    if name not in known:
        there_is = ", ".join(known) or "none on this server"
        raise UnknownModel(f"no {what} {name[:80]!r}; available: {there_is}")
