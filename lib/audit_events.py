"""What the audit log says of an analysis: which model on which scan with which settings, and what came of it."""

from __future__ import annotations

import atexit
import functools
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib import audit
from lib.errors import ServerBusy
from monailabel_app import __version__
from monailabel_app.audit import AuditUnwritable
from monailabel_app.audit.facts import analysis_facts
from monailabel_app.errors import AnomalyAppError, Cancelled, ScanRefused
from monailabel_app.pipelines.manifest import source_commit

OK, FAILED, REFUSED, CANCELLED = "ok", "failed", "refused", "cancelled"


def noted_analysis(infer: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Of the app's ``infer``: every analysis is noted before it is answered, whoever asked for it and however."""

    @functools.wraps(infer)
    def noting(app: Any, request: Mapping[str, Any], *given: Any, **options: Any) -> dict[str, Any]:
        began = time.monotonic()
        about = {
            _model_fact(app, request): str(request.get("model") or ""),
            "request": "upload" if options.get("image_file") else "stored",
        }
        if not options.get("image_file"):
            about["image"] = str(request.get("image") or "")
        try:
            answer = infer(app, request, *given, **options)
        except BaseException as error:
            seconds = time.monotonic() - began
            audit.note("analysis", outcome_of(error), kind=type(error).__name__, seconds_total=seconds, **about)
            raise
        try:
            facts = analysis_facts(answer["params"])
            audit.note("analysis", OK, **{**about, **facts}, seconds_total=time.monotonic() - began)
        except AuditUnwritable:
            with suppress(OSError, TypeError, KeyError):
                Path(answer["file"]).unlink(missing_ok=True)
            raise
        return answer

    return noting


def note_scored(model: str, image: str, outcome: Mapping[str, Any] | Exception, seconds: float) -> None:
    """The analysis of one scan by a scoring task, which does not go through the app's ``infer``."""
    about = {"model": model, "image": image, "request": "scoring", "seconds_total": seconds}
    if isinstance(outcome, Exception):
        audit.note("analysis", outcome_of(outcome), kind=type(outcome).__name__, **about)
    else:
        told = {name: value for name, value in analysis_facts(outcome).items() if value is not None}
        audit.note("analysis", OK, **{**about, **told})


def _model_fact(app: Any, request: Mapping[str, Any]) -> str:
    """In clear only what is a model here; another word of a request may be anything."""
    return "model" if str(request.get("model")) in app.tasks() else "asked_model"


def outcome_of(error: BaseException) -> str:
    """``refused`` for what was not tried, ``cancelled``, else ``failed``."""
    if isinstance(error, Cancelled):
        return CANCELLED
    if isinstance(error, (ScanRefused, ServerBusy)):
        return REFUSED
    refused = isinstance(error, AnomalyAppError) and error.status in {400, 401, 403, 404, 409, 413, 422}
    return REFUSED if refused and type(error).__name__.startswith(("Invalid", "Unknown", "Not")) else FAILED


def server_noted(app: Any) -> None:
    """Note that the server has started, and how; and, when it ends in order, that it has stopped."""
    audit.note(
        "server_started",
        app=__version__,
        commit=source_commit(),
        models=len(app.tasks()),
        trainers=len(app.trainers()),
        auth=str(app.conf.get("auth", "auto")),
    )
    ended = _Ended()
    atexit.register(ended)
    if threading.current_thread() is threading.main_thread():
        # The server ends itself by the signal it was sent, so that nothing that is registered is called.
        for number in (signal.SIGTERM, signal.SIGINT):
            ended.before(number)


class _Ended:
    """Notes once that the server has stopped."""

    def __init__(self) -> None:
        self._once = threading.Lock()

    def __call__(self) -> None:
        if self._once.acquire(blocking=False):
            with suppress(AuditUnwritable):
                audit.note("server_stopped")

    def before(self, number: int) -> None:
        """Do it, too, when this signal comes; then what was to be done about it."""
        former = signal.getsignal(number)
        if not callable(former):
            return

        def handler(signum: int, frame: Any) -> Any:
            # In a thread of its own: the signal may have interrupted whoever holds the lock of the log.
            threading.Thread(target=self, name="the end is noted").start()
            return former(signum, frame)

        with suppress(ValueError):
            signal.signal(number, handler)
