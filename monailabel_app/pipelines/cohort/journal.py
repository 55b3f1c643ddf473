"""cohort.jsonl: one line per finished scan, only ever appended to.

A line is on the disk (fsync) before its scan counts as done, so that a run that is killed, or a machine that loses
power, costs the scans under way and nothing else. A line that a kill cut short is left where it is and closed by a line
break: it is no JSON, is counted and passed over, and its scan is done anew. The newest line of a scan is the one that
counts. One run at a time per folder: a lock that the system gives back when its process dies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monailabel_app.errors import AnomalyAppError
from monailabel_app.types import to_json

JOURNAL, LOCK = "cohort.jsonl", ".cohort.lock"


class FolderInUse(AnomalyAppError):
    """Another run writes into this folder."""

    status = 409


class Journal:
    """Of one folder, for one run; use it in a ``with`` block. Holds names and paths of scans: patient data."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self.damaged = 0
        self._lock = FileLock(str(self.folder / LOCK), timeout=0)
        self._file: Any = None

    def __enter__(self) -> Journal:
        """Raises FolderInUse, OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patient data
        try:
            self._lock.acquire()
        except Timeout:
            raise FolderInUse(
                f"another run writes into {self.folder} now: wait for it, or give another folder with --out"
            ) from None
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All records with their places in the file, oldest first; ``damaged`` is how many lines were none."""
        self.damaged = place = 0
        try:
            stream = open(self.path, "rb")  # noqa: SIM115 - closed by the next line
        except FileNotFoundError:
            return
        with stream:
            for line in stream:
                record = _record(line)
                if record is not None:
                    yield place, record
                elif line.strip():
                    self.damaged += 1
                place += len(line)

    def at(self, place: int) -> dict[str, Any]:
        """The record at a place that ``records`` or ``append`` gave. Raises OSError where there is none."""
        with open(self.path, "rb") as stream:
            stream.seek(place)
            record = _record(stream.readline())
        if record is None:
            raise OSError(f"{JOURNAL} was changed while a run was using it: begin the run again")
        return record

    def append(self, record: Mapping[str, Any]) -> int:
        """Returns the record's place. Raises OSError, such as for a full disk; what is there of the line is none."""
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed with the journal
            self._close_last_line()
        line = json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        place = os.fstat(self._file.fileno()).st_size
        written = self._file.write(line)
        if written != len(line):
            self._file.close()
            self._file = None
            raise OSError(f"only {written} of {len(line)} bytes of a record could be written: the disk is full")
        os.fsync(self._file.fileno())
        return place

    def _close_last_line(self) -> None:
        with open(self.path, "rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return
            stream.seek(-1, os.SEEK_END)
            ended = stream.read(1) == b"\n"
        if not ended:
            self._file.write(b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("scan"), str) else None
