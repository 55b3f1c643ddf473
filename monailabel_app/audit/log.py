"""The audit log of a server and its command line: append-only, hash-chained, one file for every process.

``append`` holds a lock between threads and one between processes (``<log>.lock``, which the system releases when a
process dies), adds one line and waits until it is on the disk. What the log's end is, it remembers; only when another
process has written since (the file has another size or is another file) its last line is read again: the cost does not
depend on how long the log is.

Beside the log, ``<log>.head`` names its last record, written after it. So a log that was cut off, or restored from an
older backup, is noticed: the next record goes on from the head's, and the gap stays visible in the chain for ever. What
a killed process left of a line is moved to ``<log>.torn``, and a record says so.

A full log is renamed to ``<name>.<number of its first record>.jsonl``; the chain goes on over the files. Files may be
moved aside while it is written: then another log begins, with a key of its own.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError
from monailabel_app.files import flush, open_own

from .facts import clean, fingerprint, read_key
from .record import Tail, line_of, make_record, read_line

try:
    import fcntl
except ImportError:  # Windows: processes are not kept apart there; one server process alone is safe.
    fcntl = None

logger = logging.getLogger(__name__)

FILE = "audit.jsonl"
MAX_BYTES = 64 * 2**20
LONGEST_LINE = 16384
_HEAD_BYTES = 256
# Lines of a full file in which its first readable record is looked for.
_MOST_LOOKED_AT = 10_000
LOG = {"name": "log", "role": "admin", "how": "internal"}
_sync = getattr(os, "fdatasync", os.fsync)


class AuditUnwritable(AnomalyAppError):
    """The audit log cannot be written (disk full, folder read-only)."""

    status = 503


class AuditLog:
    """The log in one file; any number of these, in threads and processes, may append to it.

    max_bytes: a file of this size is full. The first record draws the key for ids (``facts``) where there is none.
    """

    def __init__(self, path: Path | str, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._threads = threading.Lock()
        self._process = 0
        self._lock_file = self._file = -1
        self._seen: tuple[int, int] | None = None
        self._tail = Tail()
        self._month = ""
        self._key: bytes | None = None

    def append(self, event: str, who: Mapping[str, str], outcome: str = "ok", facts: Mapping[str, Any] = {}) -> Tail:
        """Add a record; it is on the disk when this returns. Returns its number and hash.

        facts: see ``facts.clean``: text outside of the vocabulary is written as a keyed hash. Raises AuditUnwritable.
        """
        try:
            with self._held():
                return self._append(event, who, outcome, clean(facts, self._key))
        except OSError as error:
            raise AuditUnwritable(
                f"expected to write the audit log, got {os.strerror(error.errno) if error.errno else error}: free the "
                "disk or give the server's account the right to write it"
            ) from error

    def key(self) -> bytes:
        """The key for ids. Raises OSError."""
        self._key = self._key or read_key(self.path.parent)
        return self._key

    def close(self) -> None:
        """Give the files back; the next append opens them again."""
        with self._threads:
            self._shut()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The log for one record: no other thread, no other process, its end known and whole."""
        with self._threads:
            if self._process != os.getpid():
                # A forked process shares open files, and with them the lock: it needs its own.
                self._lock_file = self._file = -1
                self._process, self._seen = os.getpid(), None
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.key()
            self._lock()
            try:
                self._look()
                yield
            except BaseException:
                self._seen = None
                raise
            finally:
                if fcntl is not None:
                    fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _lock(self) -> None:
        """Take the lock that is there now: one that was moved aside keeps nobody apart."""
        path = self.path.with_name(f"{self.path.name}.lock")
        while True:
            if self._lock_file < 0:
                self._lock_file = open_own(path)
            if fcntl is None:
                return
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock_file), os.stat(path)):
                    return
            os.close(self._lock_file)
            self._lock_file = -1

    def _append(self, event: str, who: Mapping[str, str], outcome: str, facts: Mapping[str, Any]) -> Tail:
        month = datetime.now(timezone.utc).strftime("%Y-%m")
        size = self._seen[1]
        if size and (size >= self._max_bytes or month != self._month):
            self._rotate()
        self._month = month
        line, record = self._line(event, who, outcome, facts)
        self._write(line)
        self._tail = Tail(record["sequence"], record["hash"])
        self._write_head()
        return self._tail

    def _line(self, event: str, who: Mapping[str, str], outcome: str, facts: Mapping[str, Any]) -> tuple[bytes, dict]:
        record = make_record(self._tail, event, who, outcome, facts)
        line = line_of(record)
        if len(line) > LONGEST_LINE:
            record = make_record(self._tail, event, who, outcome, {"facts_left_out": len(facts)})
            line = line_of(record)
        return line, record

    def _write(self, line: bytes) -> None:
        """All of a line or nothing of it."""
        before = self._seen[1]
        try:
            done = 0
            while done < len(line):
                done += os.write(self._file, line[done:])
            _sync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise
        self._seen = (self._seen[0], before + len(line))

    def _look(self) -> None:
        """Know the log's end: as remembered, if nobody else has written; mended, if a killed process tore it."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            now = None
        if now is not None and self._file >= 0 and self._seen == (now.st_ino, now.st_size):
            return
        new = now is None
        if self._file < 0 or new or self._seen is None or self._seen[0] != now.st_ino:
            self._shut_file()
            self._file = open_own(self.path, os.O_APPEND)
            now = os.fstat(self._file)
            # With other files comes another key.
            self._key = read_key(self.path.parent)
            if new:
                with suppress(OSError):
                    flush(self.path.parent)
        else:
            now = os.fstat(self._file)
        self._seen = (now.st_ino, now.st_size)
        self._read_end()

    def _read_end(self) -> None:
        size = self._seen[1]
        reach = min(size, 2 * LONGEST_LINE)
        end = os.pread(self._file, reach, size - reach)
        while b"\n" not in end and reach < size:
            # Not what this writes: a record put behind it would be part of that line.
            reach = min(size, 2 * reach)
            end = os.pread(self._file, reach, size - reach)
        cut = end.rfind(b"\n") + 1
        torn = end[cut:]
        last = end[end.rfind(b"\n", 0, max(0, cut - 1)) + 1 : cut]
        record = read_line(last) if last else None
        head, key = self._read_head()
        tail = Tail(record["sequence"], record["hash"]) if record is not None else None
        self._month = record["time"][:7] if record is not None else datetime.now(timezone.utc).strftime("%Y-%m")
        facts: dict[str, Any] = {}
        if torn:
            # Kept as it is: it may be what is left of a record, or something that a person has to look at.
            with self.path.with_name(f"{self.path.name}.torn").open("ab") as file:
                os.chmod(file.fileno(), 0o600)
                file.write(torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._file, size - len(torn))
            self._seen = (self._seen[0], size - len(torn))
            facts |= {"torn": hashlib.sha256(torn).hexdigest()[:16], "bytes": len(torn)}
        if tail is None and last:
            # The last line is no record of ours: verify will name it. The chain goes on from what the head knows.
            facts["unreadable"] = True
        if tail is None or head.sequence > tail.sequence:
            if tail is not None:
                facts["missing"] = head.sequence - tail.sequence
            elif head.sequence and not last:
                facts["missing"] = head.sequence - self._rotated_tail().sequence
            if facts.get("missing") == 0:
                del facts["missing"]
            tail = head
        self._tail = tail
        if facts:
            self._put("log_repaired", facts)
        if key != fingerprint(self._key):
            self._put("log_started" if not key else "key_changed", {"key": fingerprint(self._key)})

    def _put(self, event: str, facts: Mapping[str, Any]) -> None:
        line, record = self._line(event, LOG, "ok", facts)
        self._write(line)
        self._tail = Tail(record["sequence"], record["hash"])
        self._write_head()

    def _rotate(self) -> None:
        os.rename(self.path, _free_name(self.path))
        with suppress(OSError):
            flush(self.path.parent)
        self._shut_file()
        self._file = open_own(self.path, os.O_APPEND)
        self._seen = (os.fstat(self._file).st_ino, 0)

    def _rotated_tail(self) -> Tail:
        """The end of the newest file that is full."""
        older = rotated(self.path)
        if not older:
            return Tail()
        with older[-1].open("rb") as file:
            file.seek(max(0, older[-1].stat().st_size - LONGEST_LINE))
            record = read_line(b"".join(file.read().splitlines(keepends=True)[-1:]))
        return Tail(record["sequence"], record["hash"]) if record else Tail()

    def _write_head(self) -> None:
        """Not waited for: after a crash of the machine it may be older than the log, which is no fault."""
        text = json.dumps(
            {"sequence": self._tail.sequence, "hash": self._tail.hash, "key": fingerprint(self._key)}, sort_keys=True
        )
        # Opened each time: it may have been moved aside with the log that it was of.
        head = open_own(head_path(self.path))
        try:
            os.pwrite(head, text.ljust(_HEAD_BYTES - 1).encode() + b"\n", 0)
        finally:
            os.close(head)

    def _read_head(self) -> tuple[Tail, str]:
        found = read_head(self.path)
        return found or (self._rotated_tail() if self._seen[1] == 0 else Tail(), "")

    def _shut_file(self) -> None:
        """At once no longer ours, so that no number is closed that has become another file's."""
        handle, self._file = self._file, -1
        if handle >= 0:
            os.close(handle)

    def _shut(self) -> None:
        if self._process != os.getpid():
            self._file = self._lock_file = -1
        self._shut_file()
        handle, self._lock_file = self._lock_file, -1
        if handle >= 0:
            os.close(handle)
        self._seen = None


def read_head(path: Path) -> tuple[Tail, str] | None:
    """Last record and key's fingerprint as the file beside the log has them; None where it says nothing usable."""
    try:
        held = json.loads(head_path(path).read_text("ascii"))
        return Tail(int(held["sequence"]), str(held["hash"])), str(held["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def head_path(path: Path) -> Path:
    """The file beside a log that names its last record."""
    return path.with_name(f"{path.name}.head")


def rotated(path: Path) -> list[Path]:
    """The full files of a log, oldest first."""
    found = []
    name = re.compile(rf"{re.escape(path.stem)}\.([0-9]{{1,20}})(?:-([0-9]{{1,6}}))?{re.escape(path.suffix)}")
    for other in path.parent.glob(f"{glob.escape(path.stem)}.*{glob.escape(path.suffix)}"):
        match = name.fullmatch(other.name)
        if match:
            found.append((int(match[1]), int(match[2] or 0), other))
    return [other for _, _, other in sorted(found)]


def _free_name(path: Path) -> Path:
    """What a full log is called. Not as another file: an older log that was restored begins with the same record."""
    first = _first_sequence(path)
    again = 0
    while True:
        name = path.with_name(f"{path.stem}.{first:010d}{f'-{again}' if again else ''}{path.suffix}")
        if not os.path.lexists(name):
            return name
        again += 1


def _first_sequence(path: Path) -> int:
    """The number of a file's first record; what verify will not be able to read counts as one record per line."""
    with path.open("rb") as file:
        for before in range(_MOST_LOOKED_AT):
            line = file.readline(2 * LONGEST_LINE)
            record = read_line(line)
            if record is not None:
                return max(0, record["sequence"] - before)
            if not line:
                break
    # Where nothing can be read: after all others.
    return int(datetime.now(timezone.utc).timestamp() * 1000)
