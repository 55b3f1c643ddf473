"""One record of the audit log: a line of canonical JSON that names the hash of the line before it.

A record is {sequence, time (UTC), event, who {name, role, how}, outcome, facts, previous, hash}. ``hash`` is the
SHA-256 of the canonical JSON of all the other fields, ``previous`` among them, so that every record vouches for all
before it (Haber and Stornetta, How to time-stamp a digital document, J. Cryptology 1991). A line is the canonical JSON
of the whole record: there is one way only to write it, so that a changed blank is a change, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

# The ``previous`` of the first record.
BEGINNING = "0" * 64
FIELDS = frozenset({"sequence", "time", "event", "who", "outcome", "facts", "previous", "hash"})


@dataclass(frozen=True)
class Tail:
    """Where a chain ends: number and hash of its last record."""

    sequence: int = 0
    hash: str = BEGINNING


def canonical(value: Any) -> bytes:
    """The one way to write a JSON value. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def hash_of(record: Mapping[str, Any]) -> str:
    """What ``hash`` of a record has to be."""
    return hashlib.sha256(canonical({key: value for key, value in record.items() if key != "hash"})).hexdigest()


def make_record(
    after: Tail, event: str, who: Mapping[str, str], outcome: str, facts: Mapping[str, Any], *, time: str | None = None
) -> dict[str, Any]:
    """The record that comes after another one."""
    record = {
        "sequence": after.sequence + 1,
        "time": time or datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "event": event,
        "who": {"name": str(who["name"]), "role": str(who["role"]), "how": str(who["how"])},
        "outcome": outcome,
        "facts": dict(facts),
        "previous": after.hash,
    }
    return {**record, "hash": hash_of(record)}


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record as it stands in the file, with the line's end."""
    return canonical(record) + b"\n"


def read_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line (with its end); None where it is not what this module would have written, to the byte."""
    try:
        record = json.loads(line)
        known = isinstance(record, dict) and set(record) == FIELDS and isinstance(record["sequence"], int)
        if known and line_of(record) == line and hash_of(record) == record["hash"]:
            return record
    except (ValueError, TypeError, RecursionError):
        pass
    return None
