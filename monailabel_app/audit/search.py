"""Records of an audit log by event, person, time, outcome and scan."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError

from .facts import keyed, read_key
from .verify import records


class NoAuditKey(AnomalyAppError):
    """The key of the log's ids is not there, so that no scan can be looked for."""


def find(
    path: Path,
    *,
    event: str | None = None,
    who: str | None = None,
    outcome: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    image: str | None = None,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """Records that fit, oldest first; of more than ``most`` the newest. image: an id in clear.

    Raises NoAuditLog, and NoAuditKey where a scan is asked for and the key is gone.
    """
    hashed = None
    if image is not None:
        key = read_key(Path(path).parent, make=False)
        if key is None:
            raise NoAuditKey("expected audit.key beside the log, found none: restore it to look for a scan's records")
        hashed = keyed(key, image)
    found: deque[dict[str, Any]] = deque(maxlen=most)
    for record in records(path):
        if event is not None and record["event"] != event:
            continue
        if who is not None and record["who"]["name"] != who:
            continue
        if outcome is not None and record["outcome"] != outcome:
            continue
        if hashed is not None and record["facts"].get("image") != hashed:
            continue
        time = datetime.fromisoformat(record["time"])
        if (since is not None and time < since) or (until is not None and time >= until):
            continue
        found.append(record)
    return list(found)


def moment(text: str) -> datetime:
    """A time as people give it: 2026-05-01, 2026-05-01T12:00, or 7d, 12h before now; UTC. Raises ValueError."""
    text = text.strip()
    unit = {"d": "days", "h": "hours", "m": "minutes"}.get(text[-1:])
    if unit and text[:-1].isdigit():
        return datetime.now(timezone.utc) - timedelta(**{unit: int(text[:-1])})
    given = datetime.fromisoformat(text)
    return given if given.tzinfo else given.replace(tzinfo=timezone.utc)
