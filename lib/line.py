"""Who may use a device when: one line per device, first come first served.

A request stands in line with its own thread and a queued job without one; both are places in the same line, so that
none overtakes the other. One condition guards all lines; it is held for moments, never during an analysis and never
while another lock is waited for.
"""

from __future__ import annotations

import threading
import time
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

    threaded: a thread of the server stands in it from the start. on_turn: called once when the device is had.
    """

    def __init__(self, device: str, threaded: bool, on_turn: Callable[[], None] | None):
        self.device = device
        self.threaded = threaded
        self.on_turn = on_turn
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
        self._lines: dict[str, list[Place]] = {}
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

    def enter(self, device: str, *, threaded: bool = True, on_turn: Callable[[], None] | None = None) -> Place:
        """A place at the end. Raises ServerBusy when too many requests wait already."""
        place = Place(device, threaded, on_turn)
        with self._moved:
            line = self._lines.setdefault(device, [])
            waiting = self._waiting()
            if threaded and line and waiting >= self._max_waiting:
                raise ServerBusy(f"{waiting} analyses are waiting for {device} already: try again later")
            line.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Give the place up, and the device with it; again, it does nothing."""
        with self._moved:
            if not place.over:
                place.over, place.holds = True, False
                self._lines[place.device].remove(place)
                self._moved.notify_all()

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
            line = self._lines[place.device]
            return sum(not other.holds for other in line[: line.index(place)])

    @contextmanager
    def standing(self, place: Place) -> Iterator[None]:
        """Within it ``device`` uses this place instead of a new one, in this thread; it is given up at the end."""
        with self._moved:
            if place.since is None:
                place.since = time.monotonic()
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
            return place.holds

    def _is_next(self, place: Place) -> bool:
        for other in self._lines[place.device]:
            if other is place:
                return True
            if other.holds or (not other.cancelled and other._keeps_its_turn()):
                return False
        return False

    def _waiting(self) -> int:
        return sum(place.threaded and not place.holds for line in self._lines.values() for place in line)
