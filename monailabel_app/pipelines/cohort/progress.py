"""What is told of a running cohort, and its bar on a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_SECONDS = 30.0
_RECENT = 256


@dataclass
class State:
    """total: scans to analyse in this run. current: those left out, as their records are current. failed: of done.

    The speed is that of the last scans, so that it follows when machines come and go.
    """

    total: int
    current: int = 0
    done: int = 0
    failed: int = 0
    workers: int = 1
    began: float = field(default_factory=time.monotonic)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT), repr=False)

    def finished(self, failed: bool) -> None:
        """One more scan has a record."""
        self.done += 1
        self.failed += failed
        self._times.append(time.monotonic())

    @property
    def per_hour(self) -> float | None:
        """Scans per hour of all workers together; None before the first."""
        if not self._times:
            return None
        whole = self.done <= len(self._times)
        begin = self.began if whole else self._times[0]
        count = self.done if whole else len(self._times) - 1
        return 3600 * count / max(self._times[-1] - begin, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """About; None before the first."""
        rate = self.per_hour
        return None if not rate else 3600 * (self.total - self.done) / rate

    def sentence(self) -> str:
        """For a line of a log or beside a bar."""
        if self.per_hour is None:
            return f"{self.failed} failed"
        return f"{self.failed} failed, {_short(self.per_hour)} scans/h, {duration(self.seconds_left)} left"


Tell = Callable[[State], None]


def duration(seconds: float | None) -> str:
    """``40 s``, ``12 min``, ``5.3 h`` or ``3.2 days``."""
    if seconds is None:
        return "unknown"
    for limit, unit, name, digits in ((100, 1, "s", 0), (6000, 60, "min", 0), (172800, 3600, "h", 1)):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} days"


@contextmanager
def bar() -> Iterator[Tell]:
    """A bar on standard error; where that is no terminal, a line now and then."""
    console = Console(stderr=True)
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting workers", total=None)
        last = -_LINE_SECONDS

        def tell(state: State) -> None:
            nonlocal last
            progress.update(task, completed=state.done, total=state.total, description=state.sentence())
            now = time.monotonic()
            if not console.is_terminal and (now - last >= _LINE_SECONDS or state.done == state.total):
                last = now
                console.print(f"cohort: {state.done}/{state.total} scans, {state.sentence()}", highlight=False)

        yield tell


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
