"""Submitted jobs on the disk, so that a restart of the server loses none that it has taken.

One small file in the app's cache, readable for its owner only, replaced whole. It holds what a client sent: the image's
id, the model, the parameters, and who it was; no scan. It is one server's: another one on the same folder gets none.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monailabel_app.files import replace_file

logger = logging.getLogger(__name__)

_FORMAT = 1
_KEYS = {"id": str, "image": str, "model": str, "params": dict, "created": str, "attempts": int, "principal": dict}


class JobStore:
    """Records of jobs by id, in the order in which they came; safe to share between threads.

    A record: id, image, model, params, created (ISO), attempts (how often it was begun), principal {name, role, how}.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        self._owner: FileLock | None = None
        self._complained = False

    def open(self) -> list[dict[str, Any]]:
        """The records of before; from now on this process is the only one that writes. Empty where it may not."""
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                owner = FileLock(f"{self._path}.lock", mode=0o600)
                owner.acquire(timeout=0)
            except Timeout:
                logger.warning("another server keeps the jobs of this app: those of this one end with it")
                return []
            except OSError as error:
                self._complain(error)
                return []
            self._owner = owner
            self._records = {record["id"]: record for record in self._read()}
            return [dict(record) for record in self._records.values()]

    def put(self, record: Mapping[str, Any]) -> None:
        """Keep a record; on the disk when this returns."""
        with self._lock:
            if self._owner is not None:
                self._records[str(record["id"])] = dict(record)
                self._write(lasting=True)

    def change_attempts(self, job_id: str, by: int) -> None:
        """That a job was begun once more, or that this does not count."""
        with self._lock:
            if job_id in self._records:
                self._records[job_id]["attempts"] = max(0, self._records[job_id]["attempts"] + by)
                self._write()

    def drop(self, job_id: str) -> None:
        """Forget a job that is over."""
        with self._lock:
            if self._records.pop(job_id, None) is not None:
                self._write()

    def close(self) -> None:
        """Let another process have the file."""
        with self._lock:
            if self._owner is not None:
                self._owner.release()
                self._owner = None

    def _read(self) -> list[dict[str, Any]]:
        try:
            told = json.loads(self._path.read_text())
            records = told["jobs"] if told["format"] == _FORMAT else []
            good = [record for record in records if _is_record(record)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the list of queued jobs cannot be read (%s): it begins anew", type(error).__name__)
            return []
        if len(good) < len(records):
            logger.warning("%d damaged entries of the list of queued jobs are left out", len(records) - len(good))
        return good

    def _write(self, lasting: bool = False) -> None:
        """lasting: not lost when the machine stops, either."""
        content = json.dumps({"format": _FORMAT, "jobs": list(self._records.values())}, default=str)
        try:
            replace_file(self._path, content, lasting=lasting, private=True)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("queued jobs cannot be kept on the disk (%s): a restart loses them", error.strerror)


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), kind) for key, kind in _KEYS.items())
        and all(isinstance(value["principal"].get(key), str) for key in ("name", "role", "how"))
    )
