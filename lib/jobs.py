"""Analyses as jobs: submitted and left alone, or waited for by a request to /infer; with a place in line and progress.

Threads: one worker per device runs the submitted jobs of that device in order; requests run in their own threads. All
stand in ``lib.line``, which decides whose turn it is. One lock guards the table of jobs and what is told of each; it is
held for moments only. With it the line may be asked something, never the other way round.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from lib import metrics
from lib.access.principal import ADMIN, Principal, acting, current
from lib.errors import NotAllowed, ServerBusy, UnknownJob, place_of
from lib.job import (
    CANCELLED,
    DONE,
    FAILED,
    INFER,
    QUEUED,
    RUNNING,
    STATES,
    STOPPING,
    Job,
    Plan,
    same_submitter,
)
from lib.job_store import JobStore
from lib.line import CANCELLED_WAITING, MAX_WAITING, WAITING, Lines, Place
from lib.turned_away import ComeBack
from monailabel_app.errors import AnomalyAppError, Cancelled
from monailabel_app.pipelines.overall import Overall, StageTimes

logger = logging.getLogger(__name__)

__all__ = ["CANCELLED", "DONE", "FAILED", "INFER", "QUEUED", "RUNNING", "STATES", "Job", "Jobs", "Plan"]
# How often a job is begun that a restart interrupts: one that kills the server is not to do so for ever.
MOST_ATTEMPTS = 3
MAX_QUEUED = 200
KEPT, KEPT_SECONDS = 100, 24 * 3600.0
_CANCELLED_RUNNING = "cancelled while it ran"


class Jobs:
    """The jobs of this server.

    lines: whose turn it is on a device. check: what a request comes to; raises AnomalyAppError for what cannot work.
    work: does a submitted job. describe: the text of an error for a client.
    """

    def __init__(
        self,
        lines: Lines,
        check: Callable[[str, str, Mapping[str, Any]], Plan],
        work: Callable[[Job], None],
        *,
        describe: Callable[[Exception], str] = str,
        max_queued: int = MAX_QUEUED,
        kept: int = KEPT,
        kept_seconds: float = KEPT_SECONDS,
    ):
        self._lines, self._check, self._work, self._describe = lines, check, work, describe
        self._max_queued, self._kept, self._kept_seconds = max_queued, kept, kept_seconds
        self._lock = threading.RLock()
        self._come = threading.Condition(self._lock)
        self._table: OrderedDict[str, Job] = OrderedDict()
        self._todo: dict[str, deque[Job]] = {}
        self._times = StageTimes()
        self._come_back = ComeBack(MAX_WAITING)
        self._closing = False
        self._store: JobStore | None = None

    def submit(self, image: str, model: str, params: Mapping[str, Any]) -> Job:
        """A job for a stored image; the one at hand when the same was asked for and is not over yet.

        Raises what ``check`` raises, and ServerBusy when too many wait.
        """
        return self._queue(image, model, params)

    def keep_in(self, store: JobStore) -> int:
        """Keep submitted jobs in ``store``, and go on with those that are there. Returns how many are queued again.

        Those that were begun and not ended several times, and those that cannot be done any more, are listed as failed.
        """
        records, queued = store.open(), 0
        self._store = store
        for record in records:
            with acting(Principal(**{key: record["principal"][key] for key in ("name", "role", "how")})):
                try:
                    if record["attempts"] >= MOST_ATTEMPTS:
                        raise Cancelled(
                            f"the server ended {record['attempts']} times while this ran, so it is not begun again: "
                            "submit it anew to try once more"
                        )
                    job = self._queue(record["image"], record["model"], record["params"], record)
                    if job.id != record["id"]:
                        # Two settings that were different before an update may be the same after it.
                        raise Cancelled(f"the same analysis is done as job {job.id}")
                    queued += 1
                except Exception as error:
                    self._failed_before(record, error)
        if records:
            logger.info("%d of %d jobs of before the restart are queued again", queued, len(records))
        return queued

    def _failed_before(self, record: Mapping[str, Any], error: Exception) -> None:
        """List a job of before the restart that is not done any more."""
        if not isinstance(error, AnomalyAppError):
            logger.error("a job of before the restart failed with %s", place_of(error))
        job = Job(self.told, INFER, record["model"], record["image"], record["params"], Plan(""))
        job.id = record["id"]
        with self._lock:
            self._keep(job)
            self._end(job, FAILED, self._describe(error))

    def _queue(self, image: str, model: str, params: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> Job:
        """record: of the job of before the restart that this one is."""
        plan = self._check(image, model, params)
        with self._lock:
            self._refuse_when_closing()
            for job in self._table.values():
                if plan.equal is not None and job.plan.equal == plan.equal and not job.over and not job.cancelling:
                    return job
            waiting = sum(len(todo) for todo in self._todo.values())
            if waiting >= self._max_queued:
                later = self.retry_after()
                raise ServerBusy(
                    f"{waiting} jobs are waiting already: send it again in about {later:.0f} s", retry_after=later
                )
            job = Job(self.told, INFER, model, image, params, plan)
            if record is not None:
                job.id, job.created = record["id"], datetime.fromisoformat(record["created"])
            job.submitted = True
            if self._store is not None and record is None:
                # With the lock: it must be there before it can end, and it is small.
                self._store.put(job.record())
            job.place = self._lines.enter(
                plan.device, threaded=False, on_turn=lambda: self._begin(job), owner=job.principal.name
            )
            self._keep(job)
            if plan.device not in self._todo:
                self._todo[plan.device] = deque()
                # A daemon: an analysis that is under way must not keep the server from ending.
                name = f"jobs on {plan.device}"
                threading.Thread(target=self._serve, args=(plan.device,), name=name, daemon=True).start()
            self._todo[plan.device].append(job)
            self._come.notify_all()
        return job

    @contextmanager
    def record(
        self, kind: str, model: str, image: str, params: Mapping[str, Any] | None = None, *, plan: Plan
    ) -> Iterator[Job]:
        """The work of a request, as a job: in it the line knows this thread's place, and ``tell`` takes its progress.

        Raises ServerBusy when too many requests wait, and Cancelled.
        """
        with self._lock:
            self._refuse_when_closing()
            job = Job(self.told, kind, model, image, params or {}, plan)
            job.place = self._enter(job)
            self._keep(job)
        with self._ending(job), self._lines.standing(job.place):
            yield job

    def listing(self, image: str | None = None, states: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """The newest first, as JSON."""
        with self._lock:
            self._forget()
            chosen = [
                job
                for job in reversed(self._table.values())
                if (image is None or job.image == image) and (not states or job.state in states)
            ]
            return [self._json(job) for job in chosen]

    def waiting(self) -> int:
        """How many wait for a device."""
        with self._lock:
            return sum(job.state == QUEUED for job in self._table.values())

    def working(self) -> dict[str, str]:
        """The images that are being analysed or wait for it: ``running`` or ``queued`` by image."""
        with self._lock:
            active = [job for job in self._table.values() if job.image and not job.over]
        # Of two jobs of one image the running one counts.
        return {job.image: job.state for job in sorted(active, key=lambda job: job.state == RUNNING)}

    def silent(self) -> list[tuple[float, Job]]:
        """The running jobs, and for how long each has told nothing (s): an analysis tells of every step."""
        with self._lock:
            now = time.monotonic()
            return [(now - job.heard, job) for job in self._table.values() if job.state == RUNNING]

    def get(self, job_id: str) -> dict[str, Any]:
        """One job as JSON. Raises UnknownJob."""
        with self._lock:
            return self._json(self._of(job_id))

    def json(self, job: Job) -> dict[str, Any]:
        """What clients are told of a job."""
        with self._lock:
            return self._json(job)

    def cancel(self, job_id: str, reason: str | None = None) -> dict[str, Any]:
        """Cancel a job: at once while it waits, at its next progress while it runs; one that is over stays as it is.

        Raises UnknownJob, and NotAllowed for a job that somebody else submitted, unless an admin asks.
        """
        who = current()
        with self._lock:
            job = self._of(job_id)
            if who.role != ADMIN and not same_submitter(who, job.principal):
                raise NotAllowed("this job was submitted by somebody else: ask them, or an admin, to cancel it")
            if job.over or job.cancelling:
                return self._json(job)
            waits = job.state == QUEUED
            job.cancelling = reason or (CANCELLED_WAITING if waits else _CANCELLED_RUNNING)
            if not waits:
                job.stage = STOPPING
            self._lines.cancel(job.place)
            todo = self._todo.get(job.plan.device)
            if waits and todo is not None and job in todo:
                todo.remove(job)
                self._lines.leave(job.place)
                self._end(job, CANCELLED, job.cancelling)
            return self._json(job)

    def close(self, wait_seconds: float = 10.0) -> bool:
        """The server ends: cancel everything and take no more. Returns whether all of it ended in time."""
        with self._lock:
            self._closing = True
            for job in [job for job in self._table.values() if not job.over]:
                self.cancel(job.id, "the server is shutting down")
        deadline = time.monotonic() + wait_seconds
        while time.monotonic() < deadline:
            with self._lock:
                if all(job.over for job in self._table.values()):
                    return True
            time.sleep(0.05)
        return False

    def retry_after(self) -> float:
        """Seconds until a client that is turned away now is to come back."""
        with self._lock:
            return self._come_back.seconds()

    def _enter(self, job: Job) -> Place:
        """A request's place. Raises ServerBusy that says when to come back."""
        try:
            return self._lines.enter(job.plan.device, on_turn=lambda: self._begin(job), owner=job.principal.name)
        except ServerBusy as error:
            error.retry_after = self.retry_after()
            raise

    def told(self, job: Job, stage: str, share: float) -> None:
        """What ``Job.tell`` does."""
        with self._lock:
            job.heard = time.monotonic()
            if job.cancelling:
                raise Cancelled(job.cancelling)
            if stage in {WAITING, DONE}:
                # Not at work yet; or the library has done its part, and the files are to be written still.
                return
            self._begin(job)
            changed = stage != job.stage
            job.stage = stage
            job.progress = job.overall.tell(stage, share)
            if changed:
                job.pace.restart()
            elif not job.pace.due():
                return
            elapsed, done = time.monotonic() - job.began, job.progress
        if changed:
            logger.info("job %s: %s", job.id[:8], stage)
        else:
            left = f", about {elapsed * (1 - done) / done:.0f} s left" if done > 0.02 else ""
            logger.info("job %s: %s, %.0f %% of the analysis%s", job.id[:8], stage, 100 * done, left)

    def _serve(self, device: str) -> None:
        """Run the submitted jobs of a device, one after the other."""
        todo = self._todo[device]
        while True:
            with self._come:
                while not todo:
                    self._come.wait()
                # Of several persons' jobs the one whose turn it is; of equals, the first that came.
                job = min(todo, key=lambda job: job.place.turn)
                todo.remove(job)
                self._lines.call(job.place)
            try:
                with acting(job.principal), self._ending(job), self._lines.standing(job.place):
                    self._work(job)
            except Exception as error:
                # Named errors are told to whoever asks for the job. Of others the log has the place and not the text,
                # in which a file's name, and so a patient's, may be.
                if not isinstance(error, AnomalyAppError):
                    logger.error("job %s failed with %s", job.id[:8], place_of(error))

    @contextmanager
    def _ending(self, job: Job) -> Iterator[None]:
        """Notes how the work of a job ended, and lets its error through."""
        try:
            yield
        except Cancelled as error:
            # The line knows that somebody gave up the place, and not why.
            reason = job.cancelling or str(error)
            self._end(job, CANCELLED, reason)
            if reason == str(error):
                raise
            raise Cancelled(reason) from error
        except Exception as error:
            metrics.count_error(type(error).__name__)
            self._end(job, FAILED, self._describe(error))
            raise
        except BaseException:
            self._end(job, CANCELLED, _CANCELLED_RUNNING)
            raise
        self._end(job, DONE)

    def _begin(self, job: Job) -> None:
        with self._lock:
            if job.state != QUEUED:
                return
            job.state, job.began, job.started = RUNNING, time.monotonic(), datetime.now(timezone.utc)
            job.heard = job.began
            job.overall = Overall(self._times.of(job.plan.cost))
            job.stage, job.progress = "starting", 0.0
            if job.submitted and self._store is not None:
                self._store.change_attempts(job.id, +1)
        logger.info("job %s: started with %s on %s", job.id[:8], job.model, job.plan.device)

    def _end(self, job: Job, state: str, error: str | None = None) -> None:
        with self._lock:
            if job.over:
                return
            if job.state == RUNNING:
                job.seconds = round(time.monotonic() - job.began, 3)
                took = job.overall.end()
                if state == DONE and "reconstruction" in took:
                    self._times.keep(job.plan.cost, took)
                    self._come_back.lasted(job.seconds)
            if self._store is not None and (state != CANCELLED or not self._closing):
                self._store.drop(job.id)
            elif self._store is not None and job.state == RUNNING:
                # The server ended in good order: it is begun anew, and this was no attempt.
                self._store.change_attempts(job.id, -1)
            # Before anybody can be told that it is over, so that who asks then finds it in the figures.
            metrics.count_job(job.kind, state)
            job.state, job.error = state, error
            if state == DONE:
                job.progress = 1.0
            job.stage, job.finished, job.ended = state, datetime.now(timezone.utc), time.monotonic()
            self._forget()
        logger.info("job %s: %s after %.1f s", job.id[:8], state, job.seconds or 0.0)

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise ServerBusy("the server is shutting down: send it again when it is back")

    def _keep(self, job: Job) -> None:
        self._table[job.id] = job
        self._forget()

    def _forget(self) -> None:
        """Drop jobs that are over: those of long ago, and the oldest beyond the number that is kept."""
        over = [job for job in self._table.values() if job.over]
        too_many, now = len(over) - self._kept, time.monotonic()
        for number, job in enumerate(sorted(over, key=lambda job: job.ended)):
            if number < too_many or now - job.ended > self._kept_seconds:
                del self._table[job.id]

    def _of(self, job_id: str) -> Job:
        self._forget()
        if job_id not in self._table:
            raise UnknownJob(f"no job {job_id[:40]!r}: it may be over since long, or of before the server's last start")
        return self._table[job_id]

    def _json(self, job: Job) -> dict[str, Any]:
        position = None
        if job.state == RUNNING:
            position = 0
        elif job.state == QUEUED:
            position = 1 + self._lines.ahead(job.place)
        return job.told_of(position)
