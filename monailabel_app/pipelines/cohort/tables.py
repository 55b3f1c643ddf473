"""cohort.csv and cohort.html: the newest record of every scan, most anomalous first, written again as a run goes on.

Each writing costs time in proportion to all scans, so the more there are the rarer it becomes: at most one part in
fifty of the time goes into it, however long the run. Both files are replaced whole.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from monailabel_app.files import replacing

from .page import page_parts

NAME = "cohort"
FLAGGED_P = 0.05
SHARE, LEAST_SECONDS = 0.02, 10.0


class Row(NamedTuple):
    """What a table shows of a record. gate, drift: True where the scan is unlike those of the model; None: not asked.
    text: why it failed, or the first reason of a flag. picture, mask: paths within the folder.
    """

    scan: str
    state: str
    sequence: str
    model: str
    score: float | None
    p_value: float | None
    lesions: int | None
    volume_ml: float | None
    largest_ml: float | None
    flagged: bool
    gate: bool | None
    drift: bool | None
    text: str
    seconds: float | None
    tries: int | None
    model_hash: str
    time: str
    path: str
    picture: str
    mask: str


def row_of(record: Mapping[str, Any]) -> Row:
    """Anything that is missing in a record, such as one of an earlier version, is an empty cell."""
    gate, drift = record.get("gate"), record.get("drift")
    files, seconds = record.get("files") or {}, record.get("seconds") or {}
    reasons = (gate or {}).get("reasons") or ()
    return Row(
        scan=str(record["scan"]),
        state=intern(str(record.get("state") or "failed")),
        sequence=intern(str(record.get("sequence") or "")),
        model=intern(str(record.get("model") or "")),
        score=record.get("score"),
        p_value=record.get("p_value"),
        lesions=record.get("lesions"),
        volume_ml=record.get("volume_ml"),
        largest_ml=record.get("largest_ml"),
        flagged=bool(record.get("flagged")),
        gate=None if gate is None else not gate.get("passed", True),
        drift=None if drift is None else bool(drift.get("drifted")),
        text=intern(str(record.get("error") or (reasons[0] if reasons else ""))),
        seconds=seconds.get("total"),
        tries=record.get("tries"),
        model_hash=intern(str(record.get("model_hash") or "")[:12]),
        time=str(record.get("time") or ""),
        path=str(record.get("path") or ""),
        picture=str(files.get("thumbnail") or ""),
        mask=str(files.get("mask") or ""),
    )


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The most anomalous first; what has no score at the end, by name.

    By p-value, then by score: for one model that is the order of the scores, and those of several do not compare.
    """
    return sorted(rows, key=lambda row: (row.score is None, _p(row), -(row.score or 0.0), row.scan))


def _p(row: Row) -> float:
    return 1.0 if row.p_value is None else row.p_value


def write_tables(folder: Path, rows: Iterable[Row], title: str, notes: Iterable[str] = (), name: str = NAME) -> None:
    """Both files, called ``name``. notes: sentences above the table. Raises OSError."""
    order = ranked(rows)
    _replace(Path(folder) / f"{name}.csv", lambda stream: _write_csv(stream, order))
    _replace(Path(folder) / f"{name}.html", lambda stream: stream.writelines(page_parts(order, title, list(notes))))


class TableWriter:
    """Writes the tables when it is time again. clock: for tests."""

    def __init__(
        self,
        folder: Path,
        title: str,
        *,
        name: str = NAME,
        share: float = SHARE,
        least_seconds: float = LEAST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._title, self._name = Path(folder), title, name
        self._share, self._least, self._clock = share, least_seconds, clock
        self._next = clock() + least_seconds

    def maybe(self, rows: Iterable[Row], notes: Callable[[], Iterable[str]]) -> bool:
        """Write if the last writing is long enough ago; returns whether it was. Raises OSError."""
        if self._clock() < self._next:
            return False
        self.write(rows, notes())
        return True

    def write(self, rows: Iterable[Row], notes: Iterable[str]) -> None:
        """Write now. Raises OSError."""
        began = self._clock()
        write_tables(self._folder, rows, self._title, notes, self._name)
        ended = self._clock()
        self._next = ended + max(self._least, (ended - began) / self._share)


def _write_csv(stream: io.TextIOBase, rows: list[Row]) -> None:
    writer = csv.writer(stream)
    writer.writerow(("rank", *Row._fields))
    for rank, row in enumerate(rows, 1):
        writer.writerow(["" if row.score is None else rank, *(_safe(value) for value in row)])


def _safe(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula is put in quotation marks."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _replace(path: Path, write: Callable[[Any], None]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # patient data
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        write(stream)
