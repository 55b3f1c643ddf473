"""Rich progress bars for the command line.

Where the output is not a terminal: a line when a stage begins and ends, and in between at most one in ten seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monailabel_app.training.settings import TrainProgress

from .overall import ROUGH, Overall
from .pace import Pace


class Bars:
    """One bar per stage; ``stage``, ``training`` and ``analysis`` give the callbacks that the pipelines take."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, int] = {}
        self._pace = Pace()

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar of a stage, making it at the first call."""
        new = name not in self._tasks
        if new:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        self._line(f"{name}: {done}/{total}", at_once=new or done == total)

    def analysis(self, name: str = "") -> Callable[[str, float], None]:
        """For one scan: a bar of the whole analysis, which says the stage. name: before it, such as the scan's number.

        The bar of the scan before goes.
        """
        if "analysis" in self._tasks:
            self._progress.remove_task(self._tasks["analysis"])
        begin = f"{name}: " if name else ""
        self._tasks["analysis"] = task = self._progress.add_task(f"{begin}reading", total=100)
        whole, stages = Overall(ROUGH), []

        def tell(stage: str, share: float) -> None:
            new = stage not in stages[-1:]
            if new:
                stages.append(stage)
            done = 100 if stage == "done" else int(100 * whole.tell(stage, share))
            self._progress.update(task, completed=done, description=f"{begin}{stage}")
            self._line(f"{begin}{stage} ({done} %)" if share else f"{begin}{stage}", at_once=new)

        return tell

    def training(self, now: TrainProgress) -> None:
        """Show step, loss and speed of a training."""
        held_out = f", held-out {now.validation_loss:.4f}" if now.validation_loss is not None else ""
        loss = f"loss {now.loss:.4f}{held_out}" if math.isfinite(now.loss) else "loss not told"
        quality = f", quality {now.figures['quality']:.3f}" if "quality" in now.figures else ""
        text = f"training: step {now.step}, {loss}{quality}, {now.slices_per_second:.1f} slices/s"
        new = "training" not in self._tasks
        if new:
            self._tasks["training"] = self._progress.add_task(text, total=1000)
        self._progress.update(self._tasks["training"], completed=int(1000 * now.share), description=text)
        self._line(f"{text} ({100 * now.share:.0f} %)", at_once=new or now.share >= 1)

    def _line(self, text: str, *, at_once: bool) -> None:
        if not self._progress.console.is_terminal and self._pace.due(at_once):
            self._progress.console.print(text, highlight=False)


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars for the time of a ``with`` block, on standard error."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Rich would write what a command prints meanwhile to standard error, also where it goes to a file or a pipe.
    show = {"disable": not console.is_terminal, "redirect_stdout": sys.stdout.isatty()}
    with Progress(*columns, console=console, **show) as progress:
        yield Bars(progress)
