"""The server's audit log: what happened, who asked for it (``lib.access.principal``), what came of it.

``--conf audit FILE|off`` and ``--conf audit_required true`` decide where, and whether what cannot be noted is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from monailabel.utils.others.generic import strtobool

from lib.access.principal import current
from monailabel_app.audit import AUDIT_ENVIRONMENT, Journal, log_file

logger = logging.getLogger(__name__)

_journal = Journal(None)
_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


def configure(app_dir: str | Path, conf: Mapping[str, str]) -> Journal:
    """From now on the log of this app. Cheap: nothing is opened before the first record."""
    global _journal
    path = log_file(Path(app_dir), conf.get("audit"))
    if path is None:
        logger.warning("no audit log is written: --conf audit off (or %s=off)", AUDIT_ENVIRONMENT)
    _journal = Journal(path, required=strtobool(conf.get("audit_required", "false")))
    return _journal


def journal() -> Journal:
    """The log that is written now."""
    return _journal


@contextmanager
def telling(facts: dict[str, Any]) -> Iterator[None]:
    """Within it ``about`` adds to these facts, which whoever opened it will note."""
    token = _facts.set(facts)
    try:
        yield
    finally:
        _facts.reset(token)


def about(**facts: Any) -> None:
    """Say more about the request that is being served, for its record; nothing where none will be made of it."""
    told = _facts.get()
    if told is not None:
        told.update(facts)


def note(event: str, outcome: str = "ok", **facts: Any) -> None:
    """Note an event of ``monailabel_app.audit.journal.EVENTS``; it is on the disk when this returns.

    outcome: ``ok``, ``failed``, ``refused``, ``cancelled`` or another short word. facts: numbers, yes/no, short words
    under the names in ``monailabel_app.audit.facts.IN_CLEAR``; any other text (``image=`` the id of a scan,
    ``patient=``, ``label=``) is written as a keyed hash. Never raises, except AuditUnwritable (503) where the log
    cannot be written and ``--conf audit_required true`` asks for it.
    """
    who = current()
    _journal.note(event, {"name": who.name, "role": who.role, "how": who.how}, outcome, facts)
