"""One share of the whole for work that comes in stages: what the stages took last time says what they will take.

An analysis tells a stage and the share of that stage. How long each takes depends on model, scan and machine, so a
server learns it from its analyses; before the first one, a rough division stands in.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping

# Seconds of a slice-wise network on two processor cores, by stage; only their proportions matter.
ROUGH = {
    "reading": 1.0,
    "brain extraction": 8.0,
    "alignment": 6.0,
    "input gate": 2.0,
    "reconstruction": 30.0,
    "scoring": 2.0,
    "post-processing": 3.0,
    "writing": 1.0,
}
# A stage that is not known beforehand, such as the repeats for uncertainty, gets this part of what is left.
_UNKNOWN_PART = 0.9
_KEPT = 64


class StageTimes:
    """What the stages took last, by kind of work (model, device, settings that change the cost)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, dict[str, float]] = OrderedDict()

    def of(self, kind: Hashable) -> dict[str, float]:
        """Seconds by stage, in the order they came; the rough ones for work not seen before."""
        with self._lock:
            return dict(self._held.get(kind, ROUGH))

    def keep(self, kind: Hashable, seconds: Mapping[str, float]) -> None:
        """Remember an analysis that was done; the least recently seen kinds are forgotten."""
        with self._lock:
            self._held[kind] = dict(seconds)
            self._held.move_to_end(kind)
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)


class Overall:
    """The share of one piece of work; it never falls, and is 1 only when ``end`` was called.

    expected: seconds by stage. Not safe for several threads: the one that works tells.
    """

    def __init__(self, expected: Mapping[str, float]):
        self._expected = dict(expected)
        self._began = time.monotonic()
        self._stage: str | None = None
        self._base = self._width = 0.0
        self.share = 0.0
        self.seconds: dict[str, float] = {}

    def tell(self, stage: str, share: float) -> float:
        """``share`` of ``stage`` is done. Returns the share of the whole, 0 to 1."""
        if stage != self._stage:
            self._end_stage()
            self._stage, self._began = stage, time.monotonic()
            self._base, self._width = self._part_of(stage)
        self.share = max(self.share, min(0.999, self._base + self._width * min(1.0, max(0.0, share))))
        return self.share

    def end(self) -> dict[str, float]:
        """All is done. Returns the seconds of each stage."""
        self._end_stage()
        self._stage, self.share = None, 1.0
        return dict(self.seconds)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.monotonic() - self._began

    def _part_of(self, stage: str) -> tuple[float, float]:
        """Where a stage begins in the whole, and how much of the whole it is.

        A stage that comes back (a repeat) goes on from where the whole is.
        """
        whole = sum(self._expected.values())
        if stage not in self._expected or stage in self.seconds or whole <= 0:
            return self.share, (1 - self.share) * _UNKNOWN_PART
        names = list(self._expected)
        before = sum(self._expected[name] for name in names[: names.index(stage)])
        return before / whole, self._expected[stage] / whole
