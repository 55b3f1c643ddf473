"""Rich progress bars for the command line; silent where the output is not a terminal but for a line per stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monailabel_app.training.healthy_loop import TrainProgress


class Bars:
    """One bar per stage; ``stage`` and ``training`` are the callbacks the pipelines take."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, int] = {}

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar of a stage, making it at the first call."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{name}: {done}/{total}", highlight=False)

    def training(self, now: TrainProgress) -> None:
        """Show step, loss and speed of a training."""
        held_out = f", held-out {now.validation_loss:.4f}" if now.validation_loss is not None else ""
        loss = f"loss {now.loss:.4f}{held_out}" if math.isfinite(now.loss) else "loss not told"
        quality = f", quality {now.figures['quality']:.3f}" if "quality" in now.figures else ""
        text = f"training: step {now.step}, {loss}{quality}, {now.slices_per_second:.1f} slices/s"
        if "training" not in self._tasks:
            self._tasks["training"] = self._progress.add_task(text, total=1000)
        self._progress.update(self._tasks["training"], completed=int(1000 * now.share), description=text)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{text} ({100 * now.share:.0f} %)", highlight=False)


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
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)
