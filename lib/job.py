"""One analysis as a job: what was asked for, by whom, and how far it is."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from lib.access.principal import Principal, current
from lib.line import WAITING, Place
from monailabel_app.pipelines.overall import Overall
from monailabel_app.pipelines.pace import Pace

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
INFER = "infer"
STOPPING = "stopping"


@dataclass(frozen=True)
class Plan:
    """What a request comes to. equal: the same for requests that give the same result. cost: for those that take alike.

    result: the address of what comes out, None where nothing is kept.
    """

    device: str
    equal: str | None = None
    cost: tuple[str, ...] = ()
    result: str | None = None


class Job:
    """One analysis. Its figures are written with the lock of its ``Jobs``; ``tell`` is the callback for the library.

    principal: who asked for it; its work is done in that name.
    """

    def __init__(
        self,
        told: Callable[[Job, str, float], None],
        kind: str,
        model: str,
        image: str,
        params: Mapping[str, Any],
        plan: Plan,
    ):
        self.id = uuid.uuid4().hex
        self.kind, self.model, self.image, self.params, self.plan = kind, model, image, dict(params), plan
        self.principal: Principal = current()
        # Left alone, to be done even after a restart; else a request waits for it.
        self.submitted = False
        self.state, self.stage = QUEUED, WAITING
        self.progress: float | None = None
        self.error: str | None = None
        self.created = datetime.now(timezone.utc)
        self.started: datetime | None = None
        self.finished: datetime | None = None
        self.seconds: float | None = None
        self.place: Place | None = None
        self.cancelling: str | None = None
        self.began = self.ended = 0.0
        # When the work last told how far it is.
        self.heard = 0.0
        self.overall: Overall | None = None
        self.pace = Pace()
        self._told = told

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in {QUEUED, RUNNING}

    def tell(self, stage: str, share: float) -> None:
        """``share`` (0 to 1) of ``stage`` is done. Raises Cancelled when somebody has cancelled the job."""
        self._told(self, stage, share)

    def told_of(self, position: int | None) -> dict[str, Any]:
        """What clients are told of it, as JSON. position: 0 while it runs, the place in line while it waits."""
        seconds = self.seconds
        if self.state == RUNNING:
            seconds = round(time.monotonic() - self.began, 1)
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.model,
            "image": self.image,
            "params": self.params,
            "state": self.state,
            "position": position,
            "stage": self.stage,
            "progress": None if self.progress is None else round(self.progress, 4),
            "created": iso(self.created),
            "started": iso(self.started),
            "finished": iso(self.finished),
            "seconds": seconds,
            "error": self.error,
            "result": self.plan.result if self.state == DONE else None,
        }

    def record(self) -> dict[str, Any]:
        """What has to be known to do it after a restart, as JSON."""
        who = self.principal
        return {
            "id": self.id,
            "image": self.image,
            "model": self.model,
            "params": self.params,
            "created": iso(self.created),
            "attempts": 0,
            "principal": {"name": who.name, "role": who.role, "how": who.how},
        }


def same_submitter(one: Principal, other: Principal) -> bool:
    """Whether both are one submitter; a token's holder may sign in by cookie, too."""
    by_token = {"token", "cookie"}
    return one.name == other.name and (one.how == other.how or {one.how, other.how} <= by_token)


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
