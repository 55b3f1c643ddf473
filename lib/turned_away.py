"""When a client that was turned away is to come back, so that not all of them come at the same moment."""

from __future__ import annotations

import time
from collections import deque

_USUAL_SECONDS, _LATEST_RETRY = 30.0, 300.0


class ComeBack:
    """Counts with what the last analyses took. Use it with a lock.

    waiting: how many stand in a full line.
    """

    def __init__(self, waiting: int):
        self._waiting = waiting
        self._lasted: deque[float] = deque(maxlen=8)
        self._promised = 0.0

    def lasted(self, seconds: float) -> None:
        """So long took an analysis."""
        self._lasted.append(seconds)

    def seconds(self) -> float:
        """Seconds until a place in line may be free: one analysis for each client that is turned away, one after the
        other, so that they do not all come back at the same moment.
        """
        usual = sum(self._lasted) / len(self._lasted) if self._lasted else _USUAL_SECONDS
        now = time.monotonic()
        self._promised = max(now, self._promised) + max(1.0, usual)
        # Not later than a line twice as long as there is: who comes back too early must not put all others off.
        self._promised = min(self._promised, now + min(_LATEST_RETRY, 2 * self._waiting * max(1.0, usual)))
        return max(2.0, self._promised - now)
