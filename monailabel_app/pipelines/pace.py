"""How often long work may write a line into the log: at most once in ten seconds, whatever it tells its callers."""

from __future__ import annotations

import time

SECONDS = 10.0


class Pace:
    """``due`` is True when a line may be written, and then not again for a while; the first wait begins at once."""

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self, last: bool = False) -> bool:
        """Whether to write a line now. last: this is the end of the work, which is always worth one."""
        now = time.monotonic()
        if not last and now - self._last < self._seconds:
            return False
        self._last = now
        return True

    def restart(self) -> None:
        """A line was written for another reason."""
        self._last = time.monotonic()
