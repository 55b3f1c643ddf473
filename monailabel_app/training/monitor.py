"""What people see of a training while it runs: progress.json for the viewers, TensorBoard for a closer look.

One process writes (rank 0), any number read. A reader finds a whole file or the previous one, never half of one. All
that is written is a number, a sentence of this app or a picture without a name: no id of a scan or a patient.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from monailabel_app.errors import AnomalyAppError, InvalidSettings
from monailabel_app.files import replace_file
from monailabel_app.types import to_json

from .healthy_loop import TrainProgress

_LOG = logging.getLogger(__name__)
PROGRESS = "progress.json"
RUNNING = ("preparing", "training", "calibrating", "evaluating")
_SECONDS_BETWEEN_WRITES = 1.0
_SILENT_SECONDS = 600.0  # after which a run on a machine that cannot be asked counts as stopped
_FLUSH_SECONDS = 10
_OF_PROCESSES = ("processes", "writer", "host", "updated")
_OF_THE_MOMENT = (
    "status",
    "stage",
    "stage_done",
    "stage_total",
    "seconds_left",
    "total_time",
    "message",
    "best_metric",
)
_SHARES = ("best_metric", "quality", "healthy_fpr")
_CURVES = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "quality": "quality/average_precision",
    "healthy_fpr": "quality/healthy_false_positive_rate",
    "images_per_second": "speed/images_per_second",
    "learning_rate": "learning_rate",
}


class Monitor:
    """Writes a run's progress. Neither a full disk nor a missing TensorBoard ever stops the training it watches.

    In a folder that holds progress it goes on with those figures and curves; what an earlier process drew from the
    first step reported now is drawn anew. In any process but rank 0 of a distributed run it does nothing; a process
    that starts another one to train takes its figures over when that has ended. As a context it flushes at the end,
    and marks the run as failed when an error leaves it.
    """

    def __init__(self, run_folder: Path, *, tensorboard: bool = True) -> None:
        self._folder = Path(run_folder)
        self._active = os.environ.get("RANK", "0") == "0"
        self._board: Any = None
        self._wants_board = tensorboard and self._active
        self._started = time.time()
        self._written = -math.inf
        self._told = False
        self._state: dict[str, Any] = {
            "status": "preparing",
            "stage": "",
            "epoch": 0,
            "total_epochs": 1,
            "best_metric": 0.0,
            "notes": [],
        }
        others = [p for p in _read(self._folder).get("processes", []) if _is_running(p) and p[0] != os.getpid()]
        self._processes = [*others, [os.getpid(), _start_of(os.getpid())]]
        self._take_over(always=True)
        self._resumed = "step" in self._state
        self._changed(at_once=True)

    def stage(self, name: str, done: int = 0, total: int = 0) -> None:
        """What is being done besides training, as a short sentence. Its first word may be the new status."""
        self._take_over()
        first = name.split()[0] if name.strip() else ""
        new = name != self._state["stage"]
        if first in RUNNING:
            self._state["status"] = first
        self._state |= {"stage": name, "stage_done": int(done), "stage_total": int(total)}
        self._changed(at_once=new or done == total)

    def training(self, progress: TrainProgress, *, learning_rate: float | None = None) -> None:
        """The training loop's figures; those that are missing keep their last value."""
        first = self._state["status"] != "training"
        values = {
            "step": progress.step,
            "steps": progress.steps,
            "share": progress.share,
            "epoch": progress.epoch,
            "total_epochs": progress.total_epochs,
            "loss": progress.loss,
            "validation_loss": progress.validation_loss,
            "images_per_second": progress.slices_per_second,
            "seconds": progress.seconds,
            "seconds_left": progress.seconds_left,
            "learning_rate": learning_rate,
            **progress.figures,
        }
        values = _numbers(values)
        self._state |= {"status": "training", "stage": "training", "stage_done": 0, "stage_total": 0, **values}
        self._state["notes"] = list(progress.notes)
        if "quality" in values:
            self._state["best_metric"] = values["quality"]
        self._changed(at_once=first)
        # Between two checkpoints the held-out figures are those of the last one.
        shown = _CURVES if progress.checkpoint else ("loss", "images_per_second", "learning_rate")
        curves = {_CURVES[name]: values[name] for name in shown if name in values}
        self._draw(lambda board: [board.add_scalar(tag, value, progress.step) for tag, value in curves.items()])

    def figure(self, tag: str, image: np.ndarray) -> None:
        """A picture for TensorBoard at the current step: (H, W) or (H, W, 3) uint8, without any name in it."""
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise InvalidSettings(
                f"expected a picture (H, W) or (H, W, 3) of uint8, got {image.shape} of {image.dtype}; scale it to 255"
            )
        self._take_over()
        layout = "HW" if image.ndim == 2 else "HWC"
        self._draw(lambda board: board.add_image(tag, image, self._state.get("step", 0), dataformats=layout))

    def pictures(self, sheet: np.ndarray) -> None:
        """The contact sheet of the held-out scans, as ``figure`` takes it."""
        self.figure("held-out scans", sheet)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The end: ``promoted`` in the summary tells ``published`` from ``kept``, the rest is shown as it is.

        quality: a number, or a mapping whose ``mean_ap`` is it; it takes the place of the figure measured on the way.
        total_seconds: of the whole training, where this monitor has seen only its end.
        """
        self._take_over()
        quality = summary.get("quality")
        if isinstance(quality, Mapping):
            quality = quality.get("mean_ap")
        self._state |= {n: value for n, value in summary.items() if n not in ("quality", "total_seconds")}
        self._state |= {"status": "published" if summary.get("promoted") else "kept", "stage": "", "seconds_left": 0.0}
        self._state |= _numbers({"quality": quality, "best_metric": quality})
        # A budget in minutes may end before the epochs that were planned: the bar is full all the same.
        self._state["epoch"] = self._state["total_epochs"] = max(1, int(self._state["epoch"]))
        seconds = summary.get("total_seconds", time.time() - self._started)
        self._state["total_time"] = str(timedelta(seconds=int(seconds)))
        self.close()

    def failed(self, message: str) -> None:
        """The run has ended without a model; ``message`` says why and what to do."""
        self._take_over()
        self._state |= {"status": "failed", "message": message}
        self._state.pop("seconds_left", None)
        self.close()

    def close(self) -> None:
        """Write what is pending and flush the curves."""
        self._changed(at_once=True)
        if self._board is not None:
            board, self._board = self._board, None
            try:
                board.close()
            except Exception as error:
                self._tell("TensorBoard", error)
        self._wants_board = False

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._state["status"] in RUNNING:
            # Messages of other errors may hold paths, and paths may hold names.
            self.failed(str(error) if isinstance(error, AnomalyAppError) else f"stopped by {type(error).__name__}")
        else:
            self.close()

    def _changed(self, *, at_once: bool) -> None:
        if not self._active:
            return
        now = time.monotonic()
        if not at_once and now - self._written < _SECONDS_BETWEEN_WRITES:
            return
        self._written = now
        processes = {
            "processes": self._processes,
            "writer": os.getpid(),
            "host": platform.node(),
            "updated": time.time(),
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            told = json.dumps(_clean(self._state | processes), allow_nan=False)
            replace_file(self._folder / PROGRESS, told + "\n")
        except (OSError, TypeError, ValueError) as error:
            self._tell(PROGRESS, error)

    def _take_over(self, *, always: bool = False) -> None:
        """The figures of another process that wrote last: the one before a restart, or one started to train."""
        record = _read(self._folder)
        if record and (always or record.get("writer") != os.getpid()):
            left_out = (*_OF_PROCESSES, *_OF_THE_MOMENT)
            self._state |= {name: value for name, value in record.items() if name not in left_out}
            self._state["best_metric"] = record.get("best_metric", 0.0)

    def _draw(self, write: Callable[[Any], Any]) -> None:
        if not self._wants_board:
            return
        try:
            if self._board is None:
                self._board = self._open_board()
            write(self._board)
        except Exception as error:  # whatever TensorBoard raises, the training is worth more than its curves
            self._wants_board = False
            self._tell("TensorBoard", error)

    def _open_board(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard, and takes a second

        purge = int(self._state.get("step", 0)) if self._resumed else 0
        return SummaryWriter(str(self._folder), purge_step=purge, flush_secs=_FLUSH_SECONDS)

    def _tell(self, what: str, error: Exception) -> None:
        if not self._told:
            _LOG.warning("%s cannot be written (%s); the training goes on without it", what, type(error).__name__)
        self._told = True


def read_progress(run_folder: Path) -> dict[str, Any]:
    """The progress of a run for viewers; empty when there is none (yet).

    ``status`` is ``stopped`` for a run whose process has gone without a word: killed, or the power cut.
    """
    record = _read(run_folder)
    if record.get("status") in RUNNING and not _is_alive(record):
        record["status"] = "stopped"
        record.pop("seconds_left", None)
    return _clean({key: value for key, value in record.items() if key not in _OF_PROCESSES}) if record else {}


def _read(run_folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((Path(run_folder) / PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_alive(record: Mapping[str, Any]) -> bool:
    """Whether one of the run's processes is there; on another machine, whether it was heard of lately."""
    if record.get("host") != platform.node():
        return time.time() - record.get("updated", 0) < _SILENT_SECONDS
    return any(_is_running(process) for process in record.get("processes", []))


def _is_running(process: Sequence[float]) -> bool:
    """process: number and start. Numbers are used again, the pair is not."""
    started = _start_of(int(process[0]))
    return started is not None and abs(started - process[1]) < 2


def _start_of(pid: int) -> float | None:
    """When a process started (s since 1970); None when it is gone or already dead and only not yet collected."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are finite numbers."""
    return {name: value for name, value in to_json(values).items() if value is not None}


def _clean(record: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON without NaN, infinity or null: one of them in /info/ breaks every client."""
    record = _without_null(to_json(record))
    for name in _SHARES:
        if name in record:
            record[name] = min(1.0, max(0.0, float(record[name])))
    record.setdefault("best_metric", 0.0)
    return record


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value if item is not None]
    return value
