"""Which log is written, by the server and by the command line, and what happens where it cannot be."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .log import FILE, AuditLog, AuditUnwritable
from .record import Tail

logger = logging.getLogger(__name__)

AUDIT_ENVIRONMENT = "ANOMALY_AUDIT"
OFF = "off"

EVENTS = frozenset({
    "login", "access_refused", "analysis", "label_saved", "label_removed", "scan_uploaded", "scan_replaced",
    "scan_removed", "dataset_downloaded", "review", "training_started", "training_ended", "published", "promoted",
    "rolled_back", "model_removed", "model_uploaded", "calibration", "forgotten", "purge", "dicom_stored",
    "job_cancelled", "info_changed", "training_stopped", "batch_started", "batch_stopped", "scoring_started",
    "scoring_stopped",
    "cohort_started", "cohort_scan", "cohort_ended",
    "server_started", "server_stopped", "token_created", "token_revoked", "reproduced",
    "log_started", "log_repaired", "key_changed",
})  # fmt: skip


class Journal:
    """A log, or none: then every start says so.

    required: what cannot be noted is an error of whoever asked for it; else of the server's log only.
    """

    def __init__(self, path: Path | None, *, required: bool = False) -> None:
        self.log = AuditLog(path) if path is not None else None
        self.required = required
        self.failed = 0

    def note(
        self, event: str, who: Mapping[str, str], outcome: str = "ok", facts: Mapping[str, Any] | None = None
    ) -> Tail | None:
        """Add a record. Raises AuditUnwritable where the log is required and cannot be written."""
        if self.log is None:
            return None
        if event not in EVENTS:
            logger.error("no audit event is called %r: noted all the same", event[:40])
        try:
            return self.log.append(event[:40], who, str(outcome)[:40], facts or {})
        except AuditUnwritable as error:
            self.failed += 1
            logger.error("%s is not in the audit log: %s", event[:40], error)
            if self.required:
                raise
            return None


def log_file(root: Path, given: str | None = None) -> Path | None:
    """The log of an app's folder: what was given (a file, or off), else the environment's, else logs/audit.jsonl."""
    chosen = (given or os.environ.get(AUDIT_ENVIRONMENT) or "").strip()
    if chosen.lower() == OFF:
        return None
    return Path(chosen).expanduser().absolute() if chosen else Path(root).absolute() / "logs" / FILE


@contextmanager
def command_noted(root: Path, event: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Note what a command does within it, and how that ended; more facts may be put into the mapping it gives."""
    try:
        yield facts
    except BaseException as error:
        stopped = type(error).__name__ in {"Exit", "Abort", "KeyboardInterrupt"}
        note_command(root, event, "cancelled" if stopped else "failed", kind=type(error).__name__, **facts)
        raise
    note_command(root, event, **facts)


def note_command(root: Path, event: str, outcome: str = "ok", **facts: Any) -> None:
    """Note what a command has done; who is the account that ran it."""
    with command_journal(root) as note:
        note(event, outcome, **facts)


@contextmanager
def command_journal(root: Path) -> Iterator[Callable[..., None]]:
    """For a command that notes much: within it what it gives does what ``note_command`` does, with files kept open."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        name = f"uid{os.getuid()}"
    journal = Journal(log_file(root))

    def note(event: str, outcome: str = "ok", **facts: Any) -> None:
        journal.note(event, {"name": name, "role": "admin", "how": "command"}, outcome, facts)

    try:
        yield note
    finally:
        if journal.log is not None:
            journal.log.close()
