"""Who may use a device when: one line per device, first come first served, but nobody fills it for all others.

A request stands in line with its own thread, while somebody looks at a screen; a queued job stands there without one.
Requests are served in the order in which they came. Queued jobs are, too, as long as one person submits them: of
several persons each gets one done in turn, whoever has queued two hundred. A request is overtaken by one queued job at
most, of those that came before it: it waits for the analysis that runs, for that job, and for the requests before it.
Jobs do not starve either, as every request lets one pass that came earlier.

One condition guards all lines; it is held for moments, never during an analysis and never while another lock is waited
for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lib.errors import ServerBusy
from monailabel_app.errors import Cancelled

MAX_WAITING = 16
# How long a scan that is still being fetched keeps its place's turn before the next one may go first.
PATIENCE_SECONDS = 5.0
ASK_SECONDS = 0.5
# The stage that is told while one waits for its turn.
WAITING = "waiting"
CANCELLED_WAITING = "cancelled while it waited for its turn"


class Place:
    """A place in the line of ``device``. Its figures belong to ``Lines``, which guards them.

    threaded: a thread of the server stands in it from the start. on_turn: called once when the device is had. owner:
    whose place it is. turn: of its owner's queued jobs, told as for all owners; the lowest goes first. passed: whether
    a queued job has overtaken it.
    """

    def __init__(self, device: str, threaded: bool, on_turn: Callable[[], None] | None, owner: str):
        self.device = device
        self.threaded = threaded
        self.on_turn = on_turn
        self.owner = owner
        self.turn = 0
        self.passed = False
        self.holds = self.over = self.cancelled = self.here = False
        self.entered = time.monotonic()
        self.since = self.entered if threaded else None

    def _keeps_its_turn(self) -> bool:
        """Whether those behind it have to wait although it does not hold the device."""
        return self.here or self.since is None or time.monotonic() - self.since < PATIENCE_SECONDS


class Lines:
    """The lines of all devices. max_waiting: requests that may wait; each holds one of the server's threads."""

    def __init__(self, max_waiting: int = MAX_WAITING):
        self._max_waiting = max(0, max_waiting)
        self._moved = threading.Condition()
        # Of each device those who hold it or wait, as they came, and as they are served where known.
        self._lines: dict[str, list[Place]] = {}
        self._orders: dict[str, list[Place]] = {}
        # How far the turns of queued jobs are on each device.
        self._turns: dict[str, int] = {}
        self._mine = threading.local()

    @property
    def waiting(self) -> int:
        """How many requests stand in line, those that hold a device not counted."""
        with self._moved:
            return self._waiting()

    def state(self) -> dict[str, tuple[int, bool, float]]:
        """Of every device: how many wait, threads and jobs, whether one has it, and the longest waiting time (s)."""
        now = time.monotonic()
        with self._moved:
            told = {}
            for device, line in self._lines.items():
                waiting = [place for place in line if not place.holds]
                longest = max((now - place.entered for place in waiting), default=0.0)
                told[device] = (len(waiting), len(waiting) < len(line), longest)
            return told

    def enter(
        self, device: str, *, threaded: bool = True, on_turn: Callable[[], None] | None = None, owner: str = ""
    ) -> Place:
        """A place at the end, behind all that ``owner`` has. Raises ServerBusy when too many requests wait already."""
        place = Place(device, threaded, on_turn, owner)
        with self._moved:
            line = self._lines.setdefault(device, [])
            waiting = self._waiting()
            if threaded and line and waiting >= self._max_waiting:
                raise ServerBusy(f"{waiting} analyses are waiting for {device} already: try again later")
            if not threaded:
                jobs = [other for other in line if not other.threaded]
                own = [other.turn for other in jobs if other.owner == owner]
                # Behind one that a worker stands in already: the worker could do no other.
                called = [other.turn for other in jobs if other.since is not None]
                place.turn = max(1 + max(own, default=self._turns.get(device, 0)), *called, 0)
            line.append(place)
            self._orders.pop(device, None)
        return place

    def leave(self, place: Place) -> None:
        """Give the place up, and the device with it; again, it does nothing."""
        with self._moved:
            if not place.over:
                place.over, place.holds = True, False
                self._lines[place.device].remove(place)
                self._orders.pop(place.device, None)
                self._moved.notify_all()

    def call(self, place: Place) -> None:
        """A worker comes for a queued job's place now: whoever enters from now on stands behind it."""
        with self._moved:
            if place.since is None:
                place.since = time.monotonic()

    def cancel(self, place: Place) -> None:
        """Whoever waits in the place gets Cancelled; one that has the device keeps it."""
        with self._moved:
            place.cancelled = True
            self._moved.notify_all()

    def ahead(self, place: Place) -> int:
        """How many wait before it; 0 for one that has the device or is over."""
        with self._moved:
            if place.over or place.holds:
                return 0
            order = self._order(place.device)
            return sum(not other.holds for other in order[: order.index(place)])

    @contextmanager
    def standing(self, place: Place) -> Iterator[None]:
        """Within it ``device`` uses this place instead of a new one, in this thread; it is given up at the end."""
        self.call(place)
        self._mine.place = place
        try:
            yield
        finally:
            self._mine.place = None
            self.leave(place)

    @contextmanager
    def device(self, name: str, ask: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold ``name``, in the order of the line. Raises ServerBusy, and Cancelled while waiting.

        ask: called now and then while it waits; what it raises ends the waiting.

        A thread that stands in a place and has the device is given it again at once.
        """
        place = getattr(self._mine, "place", None)
        if place is not None and place.holds and place.device == name:
            yield
            return
        own = place is None or place.over or place.device != name
        if own:
            place = self.enter(name)
        try:
            self._wait(place, ask)
            if place.on_turn is not None:
                place.on_turn()
            yield
        finally:
            self.leave(place)

    def _wait(self, place: Place, ask: Callable[[], None] | None) -> None:
        with self._moved:
            place.here = True
        while not self._taken(place):
            # Without the condition: it may want locks of its own.
            if ask is not None:
                ask()

    def _taken(self, place: Place) -> bool:
        """Whether the place has the device after a moment of waiting. Raises Cancelled."""
        with self._moved:
            if not place.cancelled and not self._is_next(place):
                self._moved.wait(ASK_SECONDS)
            if place.cancelled:
                raise Cancelled(CANCELLED_WAITING)
            place.holds = self._is_next(place)
            if place.holds:
                self._has_passed(place)
            return place.holds

    def _has_passed(self, place: Place) -> None:
        """A place has its device now: note what that means for those that wait."""
        self._orders.pop(place.device, None)
        if not place.threaded:
            self._turns[place.device] = max(self._turns.get(place.device, 0), place.turn)
            for other in self._lines[place.device]:
                other.passed = other.passed or other.threaded

    def _order(self, device: str) -> list[Place]:
        """All places of a device in the order in which they are served if nobody comes."""
        known = self._orders.get(device)
        if known is not None:
            return known
        line = self._lines[device]
        number = {place: at for at, place in enumerate(line)}
        requests = deque(place for place in line if place.threaded and not place.holds)
        jobs = deque(
            sorted(
                (place for place in line if not place.threaded and not place.holds),
                key=lambda place: (place.turn, number[place]),
            )
        )
        order, passed = [place for place in line if place.holds], {place for place in requests if place.passed}
        while requests or jobs:
            earlier = requests and jobs and number[jobs[0]] < number[requests[0]]
            if jobs and (not requests or (earlier and requests[0] not in passed)):
                order.append(jobs.popleft())
                passed.update(requests)
            else:
                order.append(requests.popleft())
        self._orders[device] = order
        return order

    def _is_next(self, place: Place) -> bool:
        for other in self._order(place.device):
            if other is place:
                return True
            if other.holds or (not other.cancelled and other._keeps_its_turn()):
                return False
        return False

    def _waiting(self) -> int:
        return sum(place.threaded and not place.holds for line in self._lines.values() for place in line)
