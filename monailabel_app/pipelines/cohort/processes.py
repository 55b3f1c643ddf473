"""Worker processes that may crash, hang or run out of memory: each costs the scan it had, and is replaced.

One process per worker with a pipe of its own, so that it is known which scan a dead one had. A scan whose worker died
has a second try after all others: the machine may have been short of memory for another's sake, or a node may have been
switched off. A scan that takes longer than the limit is not tried again. A worker ends by itself after some hundred
scans, and a new one begins, so that no library's leak grows for days.

Ctrl-C reaches the starting process only; leaving ``results`` ends all workers at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from monailabel_app.errors import AnomalyAppError

from ..spawning import end_with_parent, without_main_module

if TYPE_CHECKING:
    from .unit import Task

logger = logging.getLogger(__name__)

TRIES = 2
SCANS_PER_WORKER = 200
DEATHS_IN_A_ROW = 6
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
Work = Callable[[Any], dict[str, Any]]
Make = Callable[[str], Work]


class WorkersFail(AnomalyAppError):
    """No worker can do its work: something is wrong with the installation or the machine, not with the scans."""

    status = 500


@dataclass(frozen=True)
class Lost:
    """No record came back. kind: ``WorkerDied``, ``TimedOut`` or ``OutOfMemory``. text: for people."""

    kind: str
    text: str
    seconds: float
    worker: str


@dataclass(frozen=True)
class Lane:
    """Where one worker works: a torch device, and the number of threads it has for what is computed on the CPU."""

    device: str
    threads: int


class ProcessPool:
    """make: called in each worker with its device, gives what analyses a task; picklable. timeout: s for one scan."""

    def __init__(
        self, make: Make, lanes: Sequence[Lane], timeout: float, *, scans_per_worker: int = SCANS_PER_WORKER
    ) -> None:
        self._make, self._timeout, self._most = make, timeout, scans_per_worker
        self._workers = [_Worker(lane) for lane in lanes]
        self._in_a_row = 0

    @property
    def size(self) -> int:
        """How many scans are under way at most."""
        return len(self._workers)

    def results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, dict[str, Any] | Lost]]:
        """Every task with its record, or what it cost, as they are finished. Raises WorkersFail."""
        again: deque[Task] = deque()
        try:
            while True:
                self._hand_out(tasks, again)
                busy = [worker for worker in self._workers if worker.task is not None]
                if not busy:
                    return
                for worker in self._ready(busy):
                    task, outcome = self._collect(worker)
                    died = isinstance(outcome, Lost) and outcome.kind != "TimedOut"
                    self._in_a_row = self._in_a_row + 1 if died else 0
                    if self._in_a_row >= DEATHS_IN_A_ROW + self.size:
                        raise WorkersFail(
                            f"{self._in_a_row} workers died one after the other, the last: {outcome.text}"
                        )
                    if died and task.tries + 1 < TRIES:
                        logger.warning(
                            "a worker is replaced (%s); its scan is tried once more at the end", outcome.kind
                        )
                        again.append(replace(task, tries=task.tries + 1))
                    else:
                        yield task, outcome
        finally:
            for worker in self._workers:
                worker.end()

    def _hand_out(self, tasks: Iterator[Task], again: deque[Task]) -> None:
        for worker in self._workers:
            if worker.task is not None:
                continue
            task = next(tasks, None) or (again.popleft() if again else None)
            if task is None:
                return
            worker.give(task, self._make, self._most)

    def _ready(self, busy: list[_Worker]) -> list[_Worker]:
        """The workers with an answer, dead or late; waits for the first."""
        left = min(worker.began + self._timeout - time.monotonic() for worker in busy)
        waited = connection.wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=max(0.0, left))
        late = time.monotonic() - self._timeout
        return [w for w in busy if w.pipe in waited or w.process.sentinel in waited or w.began <= late]

    def _collect(self, worker: _Worker) -> tuple[Task, dict[str, Any] | Lost]:
        task, seconds = worker.task, time.monotonic() - worker.began
        answer = worker.answer()
        worker.task = None
        if isinstance(answer, dict):
            worker.done += 1
            return task, answer
        if answer is None and worker.process.is_alive() and seconds >= self._timeout:
            worker.end()
            text = f"took longer than {self._timeout:.0f} s (--timeout) and was stopped"
            return task, Lost("TimedOut", text, seconds, worker.name)
        worker.end()
        if isinstance(answer, str):
            return task, Lost("OutOfMemory", f"{answer}: give --workers a smaller number", seconds, worker.name)
        return task, Lost(
            "WorkerDied", f"its worker ended without an answer ({_how(worker.code)})", seconds, worker.name
        )


class _Worker:
    """One place for a process, which may be another one for every scan."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.name = lane.device
        self.process: Any = None
        self.pipe: Any = None
        self.task: Task | None = None
        self.began = 0.0
        self.done = 0
        self.code: int | None = None

    def give(self, task: Task, make: Make, most: int) -> None:
        if self.done >= most:
            self.end()
        for _ in range(2):
            if self.process is None or not self.process.is_alive():
                self.end()
                self._start(make)
            try:
                self.pipe.send(task)
                break
            except OSError:  # it died while it had nothing to do
                self.end()
        self.task, self.began = task, time.monotonic()

    def answer(self) -> Any:
        """A record, a text (no memory left), or None."""
        try:
            return self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """At once, whatever it does; one that is ending by itself may say how."""
        if self.process is not None:
            self.process.join(0.2 if self._closed() else 0)
            self.process.kill()
            self.process.join()
            self.code = self.process.exitcode
            self.process.close()
            self.pipe.close()
        self.process = self.pipe = None
        self.task, self.done = None, 0

    def _closed(self) -> bool:
        """Whether the other end of the pipe is gone, and the process with it in a moment."""
        try:
            return self.pipe.poll() and not self.pipe.recv()
        except (EOFError, OSError):
            return True

    def _start(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, self._lane), daemon=True)
        with without_main_module(), _environment({name: str(self._lane.threads) for name in THREADS}):
            self.process.start()
        theirs.close()


def _serve(pipe: Any, make: Make, lane: Lane) -> None:
    """In the worker: answer tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    work = make(lane.device)
    if "torch" in sys.modules:  # it counts the cores itself, whatever the environment says
        sys.modules["torch"].set_num_threads(lane.threads)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = work(task)
        except MemoryError as error:
            # What was allocated cannot be trusted to be given back; a new process begins with nothing.
            answer = str(error) or "no memory left"
        with suppress(OSError):
            pipe.send(answer)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """For processes started meanwhile: libraries read their number of threads when they are imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _how(code: int | None) -> str:
    if code is None:
        return "unknown"
    if code == -signal.SIGKILL:
        return "killed, often by the system for want of memory: give --workers a smaller number"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
