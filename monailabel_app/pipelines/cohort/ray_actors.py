"""Workers on the machines of a Ray cluster: one actor per GPU or group of cores, one scan under way for each.

Ray tells which nodes there are, runs the actors, and notices when they or their nodes are gone; wherever there is room
another is asked for, also on a node that joins later. What a lost one had under way is tried once more after all else.
Nothing waits in Ray's queues: a scan is handed out when an actor is free.

Every node reads the scans and writes pictures and masks itself, so that scans, the run's folder and the app have to lie
at the same paths on all of them; an actor on a node where they do not gets no work. No dashboard is opened, and Ray's
usage statistics are off.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel_app.errors import InvalidSettings

from .plan import CORES_PER_WORKER
from .processes import DEATHS_IN_A_ROW, THREADS, TRIES, Lost, Make, WorkersFail

if TYPE_CHECKING:
    from .unit import Task

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_TOP_UP_SECONDS = 20.0
_NO_ROOM_SECONDS = 900.0  # longer than a process may take to come up
_REACH_SECONDS = 10.0
# Ray ends a process that has not come up after a minute, and starts another, for ever: on a machine that has much else
# to do no worker would ever begin. Ray reads it on each node when it is started.
PATIENCE = "RAY_worker_register_timeout_seconds"
PATIENCE_SECONDS = 600


class RayPool:
    """make: called in each actor with its device. address: ``host:port`` of the cluster's head, or ``local`` for one on
    this machine. shared: paths that every node must have. workers: at most; by default as many as there is room for.

    Raises InvalidSettings where Ray is missing or the cluster cannot be reached.
    """

    def __init__(
        self,
        make: Make,
        address: str,
        timeout: float,
        *,
        root: Path,
        shared: Sequence[Path] = (),
        workers: int | None = None,
        devices: str = "auto",
        cores: int = CORES_PER_WORKER,
        no_room_seconds: float = _NO_ROOM_SECONDS,
    ) -> None:
        if devices not in ("auto", "cpu", "cuda"):
            raise InvalidSettings(
                f"expected --devices auto, cpu or cuda with --ray, got {devices!r}: Ray gives them out"
            )
        self._ray = _connected(address, root)
        self._make, self._timeout, self._devices, self._cores = make, timeout, devices, cores
        self._shared = [str(path) for path in (root, *shared)]
        self._most, self._no_room = workers, no_room_seconds
        self._starting: dict[Any, _Actor] = {}
        self._idle: list[_Actor] = []
        self._busy: dict[Any, tuple[_Actor, Task, float]] = {}
        self._unfit: dict[str, str] = {}
        self._gpus = False
        self._topped_up = 0.0
        self._in_a_row = 0

    @property
    def size(self) -> int:
        """How many actors the cluster has room for now."""
        return max(1, sum(self._room().values()))

    def _room(self) -> dict[str, int]:
        """By id of the nodes that can be used, how many actors each has room for."""
        nodes = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        if nodes and not nodes.keys() - self._unfit.keys():
            raise WorkersFail(next(iter(self._unfit.values())))
        gpus = self._devices != "cpu" and any(node.get("GPU") for node in nodes.values())
        if self._devices == "cuda" and not gpus:
            raise InvalidSettings("expected a cluster with GPUs for --devices cuda, found none")
        room, left = {}, self._most
        for name, node in sorted(nodes.items()):
            if name in self._unfit:
                continue
            count = int(node.get("GPU", 0) if gpus else node.get("CPU", 0) // self._cores)
            room[name] = count if left is None else min(count, left)
            left = None if left is None else left - room[name]
        self._gpus = gpus
        return room

    def results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, dict[str, Any] | Lost]]:
        """As ``ProcessPool.results``. Raises WorkersFail."""
        again: deque[Task] = deque()
        following: Task | None = None
        waiting_since = time.monotonic()
        try:
            while True:
                following = following or next(tasks, None) or (again.popleft() if again else None)
                while self._idle and following is not None:
                    actor = self._idle.pop()
                    self._busy[actor.handle.analyse.remote(following)] = actor, following, time.monotonic()
                    following = next(tasks, None) or (again.popleft() if again else None)
                if not self._busy and following is None:
                    return
                if self._busy or self._idle:
                    waiting_since = time.monotonic()
                elif time.monotonic() - waiting_since > self._no_room:
                    raise WorkersFail(
                        f"no worker of the cluster could begin within {self._no_room:.0f} s: no machine has room, or "
                        "they are so busy that a process takes longer to come up than Ray waits for it (set "
                        f"{PATIENCE}={PATIENCE_SECONDS} for `ray start` on each of them, docs/cohorts.md)"
                    )
                self._top_up()
                for task, outcome in self._finished():
                    died = isinstance(outcome, Lost) and outcome.kind != "TimedOut"
                    self._count(died, outcome)
                    if died and task.tries + 1 < TRIES:
                        logger.warning("a worker is replaced (%s); its scan is tried once more", outcome.kind)
                        again.append(replace(task, tries=task.tries + 1))
                    else:
                        yield task, outcome
        finally:
            self._close()

    def _top_up(self) -> None:
        """Ask for an actor wherever there is room for another."""
        if time.monotonic() - self._topped_up < _TOP_UP_SECONDS:
            return
        self._topped_up = time.monotonic()
        actors = [*self._idle, *self._starting.values(), *(actor for actor, _, _ in self._busy.values())]
        there_are = Counter(actor.node for actor in actors)
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        for node, count in self._room().items():
            for _ in range(count - there_are[node]):
                device, threads = ("cuda:0", 1) if self._gpus else ("cpu", self._cores)
                wanted = {
                    "num_gpus": int(self._gpus),
                    "num_cpus": threads,
                    "scheduling_strategy": affinity(node, False),
                }
                actor_class = self._ray.remote(max_restarts=0, max_task_retries=0, **wanted)(Worker)
                handle = actor_class.remote(self._make, device, threads)
                self._starting[handle.begin.remote(self._shared)] = _Actor(handle, node)

    def _finished(self) -> Iterator[tuple[Task, dict[str, Any] | Lost]]:
        """What came back within a moment; actors that are ready meanwhile can be given work."""
        wanted = [*self._busy, *self._starting]
        done = self._ray.wait(wanted, num_returns=1, timeout=_LOOK_SECONDS)[0] if wanted else time.sleep(_LOOK_SECONDS)
        for reference in done or ():
            if reference in self._starting:
                self._begun(reference)
            else:
                yield self._collected(reference)
        late = time.monotonic() - self._timeout
        for reference, (actor, task, began) in list(self._busy.items()):
            if began <= late:
                del self._busy[reference]
                self._drop(actor)
                text = f"took longer than {self._timeout:.0f} s (--timeout) and was stopped"
                yield task, Lost("TimedOut", text, time.monotonic() - began, actor.name)

    def _begun(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            actor.name, missing = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._drop(actor)
            self._count(True, Lost("WorkerDied", _first_line(error), 0.0, "ray"))
            return
        if missing:
            # Such a node would fail all scans faster than the others can analyse them.
            self._drop(actor)
            text = f"the node {actor.name} does not have {', '.join(missing)[:200]}: every node needs the same paths"
            self._unfit[actor.node] = text
            logger.warning("a node is left out: it does not have the paths that all have to share")
            return
        self._idle.append(actor)

    def _collected(self, reference: Any) -> tuple[Task, dict[str, Any] | Lost]:
        actor, task, began = self._busy.pop(reference)
        seconds = time.monotonic() - began
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._drop(actor)
            text = f"its worker or the machine it ran on is gone ({_first_line(error)})"
            return task, Lost("WorkerDied", text, seconds, actor.name)
        if isinstance(answer, str):
            self._drop(actor)
            return task, Lost("OutOfMemory", answer, seconds, actor.name)
        self._idle.append(actor)
        return task, answer

    def _count(self, died: bool, outcome: Any) -> None:
        self._in_a_row = self._in_a_row + 1 if died else 0
        if self._in_a_row >= DEATHS_IN_A_ROW + self.size:
            raise WorkersFail(f"{self._in_a_row} workers were lost one after the other, the last: {outcome.text}")

    def _drop(self, actor: _Actor) -> None:
        self._ray.kill(actor.handle, no_restart=True)
        self._topped_up = 0.0

    def _close(self) -> None:
        for actor in [*(actor for actor, _, _ in self._busy.values()), *self._idle, *self._starting.values()]:
            self._ray.kill(actor.handle, no_restart=True)
        self._busy, self._idle, self._starting = {}, [], {}
        self._ray.shutdown()


class _Actor:
    """handle: Ray's. node: its id. name: of machine and device, for records, once it has begun."""

    def __init__(self, handle: Any, node: str) -> None:
        self.handle, self.node, self.name = handle, node, "ray"


class Worker:
    """What Ray makes an actor of: the same unit of work as in a process of one machine."""

    def __init__(self, make: Make, device: str, threads: int) -> None:
        # Ray ends an actor by a signal of its own; the number of threads is read when the libraries are imported.
        os.environ.update({name: str(threads) for name in THREADS})
        self._make, self._device, self._threads = make, device, threads
        self._work: Any = None

    def begin(self, shared: Sequence[str]) -> tuple[str, list[str]]:
        """The machine's name, and what it does not have of the paths that all have to share."""
        missing = [path for path in shared if not os.path.exists(path)]
        if not missing:
            # Minutes on a machine that is busy, which are not to count as the first scan's.
            import torch  # noqa: F401
        return f"{platform.node()} {self._device}", missing

    def analyse(self, task: Task) -> dict[str, Any] | str:
        """A record; a text where there is no memory left."""
        if self._work is None:
            self._work = self._make(self._device)
            if self._device == "cpu":
                import torch

                torch.set_num_threads(self._threads)
        try:
            return self._work(task)
        except MemoryError as error:
            return str(error) or "no memory left"


def _connected(address: str, root: Path) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise InvalidSettings(
            "expected Ray for --ray, it is not installed: pip install -r requirements-ray.txt"
        ) from None
    _check_address(address)
    options = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": runtime_env(root)}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault(PATIENCE, str(PATIENCE_SECONDS))
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InvalidSettings(_unreachable(address, error)) from None
    return ray


def runtime_env(root: Path, interpreter: str = sys.executable) -> dict[str, Any]:
    """What Ray is told of the processes that it starts. They run the node's own interpreter.

    But where this one's path has a space, it is named, and has to be at the same path on all nodes as the app has: Ray
    puts a path that it has found itself into a shell's line as it is, and no worker would ever start.
    """
    told = {"env_vars": {"PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"}}
    quoted = shlex.quote(interpreter)
    return told if quoted == interpreter else {**told, "py_executable": quoted}


def _check_address(address: str) -> None:
    """Ray itself waits for minutes where nobody listens."""
    if address == "local":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidSettings(f"expected --ray host:port of the cluster's head, or local; got {address[:80]!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InvalidSettings(_unreachable(address, error)) from None


def _unreachable(address: str, error: BaseException) -> str:
    return (
        f"expected a Ray cluster at {address}, could not reach it ({_first_line(error)}); start its head with "
        "`ray start --head --include-dashboard=false --disable-usage-stats`; if it has a token, copy its "
        "~/.ray/auth_token and set RAY_AUTH_MODE=token here as well (docs/cohorts.md)"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
