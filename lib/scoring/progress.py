"""How far a scoring process is: a small file that it writes and that the server's process reads."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from monailabel_app.files import replace_file

logger = logging.getLogger(__name__)

RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
_OF_PROCESSES = ("pid", "host", "process_started")


class ProgressFile:
    """The progress of the last run of one method. Only ever one process writes: MONAI Label runs one scoring at a time.

    A file that cannot be written is no reason to stop the work; it is said once in the log.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._record: dict[str, Any] = {}
        self._began = self._began_stage = 0.0
        self._told = False

    def begin(self, total: int) -> None:
        """A run of ``total`` steps begins."""
        now = time.time()
        process = {"pid": os.getpid(), "host": platform.node(), "process_started": psutil.Process().create_time()}
        self._began = self._began_stage = time.monotonic()
        self._record = {"status": RUNNING, "done": 0, "total": total, "failed": 0, "started": int(now), **process}
        self._write()

    def step(self, done: int, failed: int = 0, **more: Any) -> float | None:
        """``done`` of all steps are over. Returns about how many seconds are left; None where that is not known.

        more: for work in several stages, ``stage`` (in words) and its ``total``; the time left is then the stage's.
        """
        if more.get("stage") != self._record.get("stage"):
            self._began_stage = time.monotonic()
        total, left = more.get("total", self._record["total"]), None
        if done:
            left = (time.monotonic() - self._began_stage) / done * max(0, total - done)
        self._record |= {"done": done, "failed": failed, "seconds_left": None if left is None else round(left), **more}
        self._write()
        return left

    def end(self, status: str = DONE, **more: Any) -> None:
        """The run is over. more: its result, in a few plain JSON values."""
        self._record |= {"status": status, "seconds": round(time.monotonic() - self._began, 1), **more}
        self._record.pop("seconds_left", None)
        self._write()

    def read(self) -> dict[str, Any]:
        """For clients; empty when there was no run. ``stopped`` is one whose process has gone without a word."""
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(record, dict):
            return {}
        if record.get("status") == RUNNING and record.get("host") == platform.node() and not _is_running(record):
            record["status"] = STOPPED
            record.pop("seconds_left", None)
        return {key: value for key, value in record.items() if key not in _OF_PROCESSES}

    def _write(self) -> None:
        self._record["updated"] = int(time.time())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self._record))
        except OSError as error:
            if not self._told:
                logger.warning("progress cannot be written (%s)", type(error).__name__)
            self._told = True


def _is_running(record: dict[str, Any]) -> bool:
    try:
        return abs(psutil.Process(int(record["pid"])).create_time() - float(record["process_started"])) < 1.0
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
