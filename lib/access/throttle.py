"""How often a wrong token or password may come from one address. A right one is never counted, nor kept waiting."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable

ATTEMPTS, SECONDS = 20, 60.0
# About a megabyte; beyond it those that were seen longest ago are forgotten.
MOST_KEYS = 4096


class Throttle:
    """Counts failures by key within windows of ``seconds``; ``attempts`` of them are free. Safe for threads."""

    def __init__(self, attempts: int = ATTEMPTS, seconds: float = SECONDS, most: int = MOST_KEYS):
        self.attempts, self.seconds, self.most = attempts, seconds, most
        self._seen: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def failed(self, key: Hashable) -> float:
        """Count a failure. Returns the seconds to wait where there were too many, else 0."""
        now = time.monotonic()
        with self._lock:
            count, began = self._seen.pop(key, (0, now))
            if now - began >= self.seconds:
                count, began = 0, now
            self._seen[key] = (count + 1, began)
            while len(self._seen) > self.most:
                self._seen.popitem(last=False)
        return began + self.seconds - now if count + 1 > self.attempts else 0.0

    def waiting(self, key: Hashable) -> float:
        """Seconds until the next attempt of a key is looked at; 0 for at once."""
        now = time.monotonic()
        with self._lock:
            count, began = self._seen.get(key, (0, now))
        return max(0.0, began + self.seconds - now) if count >= self.attempts else 0.0

    def forgive(self, key: Hashable) -> None:
        """Take back what was counted for a key."""
        with self._lock:
            self._seen.pop(key, None)

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._seen)
