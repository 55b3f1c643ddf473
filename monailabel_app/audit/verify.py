"""Whether an audit log is whole; if not, where it is broken and how.

What the chain alone shows: a record that was changed, taken out, put in or moved. That the newest records were cut off
it cannot show: for this there is the file ``<log>.head`` beside it, and, against somebody who may write both, a hash
that was written down elsewhere (``audit head``, then ``audit verify --head``). A chain that was made anew from some
record on is told in the same way only.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from monailabel_app.errors import AnomalyAppError

from .log import LONGEST_LINE, fcntl, read_head, rotated
from .record import BEGINNING, Tail, read_line

CHANGED, REMOVED, INSERTED, REORDERED, TRUNCATED, TORN = (
    "changed", "removed", "inserted", "reordered", "truncated", "torn",
)  # fmt: skip
MOST_FAULTS = 50
MOST_RANGES = 10_000


class NoAuditLog(AnomalyAppError):
    """There is no audit log at that place."""

    status = 404


@dataclass(frozen=True)
class Fault:
    """One break. file, line: where (from 1). kind: one of the words above."""

    kind: str
    file: str
    line: int
    text: str

    def sentence(self) -> str:
        """For people."""
        return f"{self.file}, line {self.line}: {self.kind}: {self.text}"


@dataclass
class Report:
    """What was found. records: readable ones. head: the last of them. notes: what a whole log's reader should know."""

    records: int = 0
    files: list[str] = field(default_factory=list)
    head: Tail = field(default_factory=Tail)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Nothing is missing, changed, or in the wrong place."""
        return not self.faults


def verify(path: Path, *, head: str | None = None, after: str | None = None) -> Report:
    """Check a log and the full files beside it.

    head: hash of a record that has to be there. after: hash of the last record of older files, which were taken away to
    an archive. Raises NoAuditLog.
    """
    path, report = Path(path), Report()
    with ExitStack() as stack:
        files, kept = _opened(path, stack)
        report.files = [name for name, _, _ in files]
        chain = _Chain(report, after or BEGINNING, {value for value in (head, kept and kept.hash) if value})
        for name, file, size in files:
            for number, line in enumerate(_lines(file, size), 1):
                chain.add(name, number, line)
        chain.end()
    last = (files[-1][0], max(1, chain.lines)) if files else (path.name, 1)
    if kept is None and report.records:
        report.notes.append(
            f"{path.name}.head is not there or unreadable: only --head tells whether the end is missing"
        )
    elif kept is not None and kept.sequence > report.head.sequence:
        missing = kept.sequence - report.head.sequence
        report.faults.append(Fault(TRUNCATED, *last, f"the last {missing} records are not here"))
    elif kept is not None and kept.sequence and kept.hash not in chain.found:
        report.faults.append(
            Fault(CHANGED, *last, f"record {kept.sequence} is not the one that was written: the log was made anew")
        )
    if head and head not in chain.found:
        report.faults.append(
            Fault(TRUNCATED, *last, "the record with the given hash is not here: cut off or made anew")
        )
    return report


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The readable records of a log and of the full files beside it, oldest first. Raises NoAuditLog."""
    with ExitStack() as stack:
        for _, file, size in _opened(Path(path), stack)[0]:
            for line in _lines(file, size):
                record = read_line(line)
                if record is not None:
                    yield record


class Numbers:
    """Numbers that were seen, as ranges: those of a whole log are one, however long it is.

    Of a log so broken that there would be more than MOST_RANGES, the rest is not remembered.
    """

    def __init__(self) -> None:
        self._first: list[int] = []
        self._end: list[int] = []

    def add(self, number: int) -> None:
        if self._end and number == self._end[-1]:
            self._end[-1] += 1
        elif number not in self and len(self) < MOST_RANGES:
            place = bisect_right(self._first, number)
            self._first.insert(place, number)
            self._end.insert(place, number + 1)
            for left in (place, place - 1):
                if 0 <= left < len(self) - 1 and self._end[left] == self._first[left + 1]:
                    self._end[left] = self._end.pop(left + 1)
                    del self._first[left + 1]

    def first(self, begin: int, end: int) -> int | None:
        """The first number from ``begin`` to before ``end``."""
        place = bisect_right(self._first, begin) - 1
        if place >= 0 and begin < self._end[place]:
            return begin if begin < end else None
        following = self._first[place + 1] if place + 1 < len(self) else end
        return following if following < end else None

    def __contains__(self, number: int) -> bool:
        return self.first(number, number + 1) is not None

    def __len__(self) -> int:
        return len(self._first)


class _Unreadable:
    """Lines that are no records, since the last one: how many, and where and what the first and the last are."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[tuple[str, int, str, bool]] = []

    def add(self, file: str, number: int, line: bytes) -> None:
        self.count += 1
        del self._kept[MOST_FAULTS:]
        self._kept.append((file, number, _about(line), line.endswith(b"\n")))

    def __iter__(self) -> Iterator[tuple[str, int, str, bool]]:
        """File, line, what it seems to be, and whether it is a whole line."""
        return iter(self._kept)


class _Chain:
    """Follows the records one by one; remembers numbers, so that a moved record is told from one taken out."""

    def __init__(self, report: Report, beginning: str, wanted: set[str]) -> None:
        self._report, self._wanted = report, wanted
        self._given = beginning != BEGINNING
        self._tail: Tail | None = None
        self._beginning = beginning
        self._seen = Numbers()
        # Of the faults that name missing records, by their place in the list: the first and how many.
        self._gaps: dict[int, tuple[int, int]] = {}
        self._unreadable = _Unreadable()
        self.found: set[str] = set()
        self.lines = 0

    def add(self, file: str, number: int, line: bytes) -> None:
        self.lines = number
        record = read_line(line)
        if record is None:
            self._unreadable.add(file, number, line)
            return
        self._report.records += 1
        if record["hash"] in self._wanted:
            self.found.add(record["hash"])
        where, sequence = (file, number), record["sequence"]
        if self._tail is None:
            self._first(where, record)
        else:
            self._next(where, record)
        self._seen.add(sequence)
        if self._tail is None or sequence > self._tail.sequence:
            self._tail = self._report.head = Tail(sequence, record["hash"])

    def end(self) -> None:
        """Judge what stands after the last readable record."""
        for file, number, _, whole in self._unreadable:
            if whole:
                self._fault(CHANGED, file, number, "the line is not as it was written")
            else:
                text = "the last line is not whole: a process was killed while it wrote it, or it was changed"
                self._fault(TORN, file, number, text)
        faults = self._report.faults
        for position, (first, length) in self._gaps.items():
            came_back = self._seen.first(first, first + length)
            if came_back is not None:
                text = f"record {came_back} stands after later ones"
                faults[position] = Fault(REORDERED, faults[position].file, faults[position].line, text)

    def _first(self, where: tuple[str, int], record: dict[str, Any]) -> None:
        bad, self._unreadable = self._unreadable, _Unreadable()
        expected = 1 + bad.count
        if record["previous"] == self._beginning and (record["sequence"] == 1 or self._given):
            for file, number, *_ in bad:
                self._fault(INSERTED, file, number, "a line that does not belong to the log")
            return
        for file, number, about, _ in bad:
            self._fault(CHANGED, file, number, about)
        if record["sequence"] != expected or not bad.count:
            text = f"the log begins with record {record['sequence']}: what came before is not here"
            self._fault(REMOVED, *where, text)

    def _next(self, where: tuple[str, int], record: dict[str, Any]) -> None:
        bad, self._unreadable = self._unreadable, _Unreadable()
        tail, sequence = self._tail, record["sequence"]
        follows = sequence == tail.sequence + 1 and record["previous"] == tail.hash
        if follows:
            for file, number, *_ in bad:
                self._fault(INSERTED, file, number, "a line that does not belong to the log")
            return
        for file, number, about, _ in bad:
            self._fault(CHANGED, file, number, about)
        expected = tail.sequence + 1 + bad.count
        if sequence > expected:
            if len(self._report.faults) < MOST_FAULTS:
                self._gaps[len(self._report.faults)] = (expected, sequence - expected)
            gap = f"record {expected}" if sequence == expected + 1 else f"records {expected} to {sequence - 1}"
            self._fault(REMOVED, *where, f"{gap} before this line are not here")
        elif sequence <= tail.sequence:
            if sequence in self._seen:
                self._fault(INSERTED, *where, f"record {sequence} stands here a second time")
            elif not any(first <= sequence < first + length for first, length in self._gaps.values()):
                self._fault(REORDERED, *where, f"record {sequence} stands after record {tail.sequence}")
        elif not bad.count:
            self._fault(CHANGED, *where, f"record {tail.sequence} before it is not the one that this one followed")
        elif sequence < expected:
            self._fault(INSERTED, *where, f"more lines than records before record {sequence}")

    def _fault(self, kind: str, file: str, number: int, text: str) -> None:
        if len(self._report.faults) < MOST_FAULTS:
            self._report.faults.append(Fault(kind, file, number, text))


def _about(line: bytes) -> str:
    """What an unreadable line seems to be, without repeating what somebody may have put there."""
    with suppress(ValueError, TypeError, KeyError):
        return f"record {int(json.loads(line)['sequence'])} is not as it was written"
    return "the line is not as it was written"


def _opened(path: Path, stack: ExitStack) -> tuple[list[tuple[str, BinaryIO, int]], Tail | None]:
    """Name, file and size of every file as they are at one moment, and the head of that moment."""
    if not path.is_file() and not rotated(path):
        raise NoAuditLog(f"expected an audit log at {path}, found none: give its place with --log")
    with ExitStack() as held:
        if fcntl is not None:
            with suppress(OSError):
                # Read-only copies have no lock, and nobody writes them.
                lock = held.enter_context(path.with_name(f"{path.name}.lock").open("rb"))
                fcntl.flock(lock, fcntl.LOCK_SH)
        paths = [*rotated(path), *([path] if path.is_file() else [])]
        files = []
        for each in paths:
            file = stack.enter_context(each.open("rb"))
            files.append((each.name, file, file.seek(0, 2)))
            file.seek(0)
        head = read_head(path)
    return files, head[0] if head else None


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Lines of the first ``size`` bytes with their ends; one that is too long comes in pieces that nobody reads."""
    left = size
    while left > 0:
        line = file.readline(min(left, 2 * LONGEST_LINE))
        if not line:
            return
        left -= len(line)
        yield line
