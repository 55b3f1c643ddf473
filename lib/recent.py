"""What was just asked for, so that the images of one result are not each worked out anew."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The last few values by key, for some seconds; of requests for the same value at once, one makes it.

    Values may be large and about patients: they leave by themselves when their time is over. Errors are not kept.
    """

    def __init__(self, entries: int, seconds: float):
        self._entries, self._seconds = entries, seconds
        self._held: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.Lock, list[None]]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, made where it is not at hand. Raises what ``make`` raises."""
        with self._lock:
            turn, waiting = self._making.setdefault(key, (threading.Lock(), []))
            waiting.append(None)
        try:
            with turn:
                held = self.peek(key)
                if held is None:
                    held = make()
                    self._keep(key, held)
                return held
        finally:
            with self._lock:
                waiting.pop()
                if not waiting:
                    self._making.pop(key, None)

    def peek(self, key: Hashable) -> T | None:
        """The value, where it is at hand."""
        with self._lock:
            self._drop()
            held = self._held.get(key)
            return None if held is None else held[1]

    def _keep(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._held[key] = (time.monotonic() + self._seconds, value)
            self._held.move_to_end(key)
            while len(self._held) > self._entries:
                self._held.popitem(last=False)
        timer = threading.Timer(self._seconds + 0.1, self._drop_later)
        timer.daemon = True
        timer.start()

    def _drop_later(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        now = time.monotonic()
        for key in [key for key, (until, _) in self._held.items() if until <= now]:
            del self._held[key]

    def __len__(self) -> int:
        return len(self._held)
