"""The server's own rounds of ``monailabel_app.pipelines.retention``: one when it starts, one every day."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from lib import audit, metrics
from lib.access.principal import SERVER, acting
from lib.dicomweb import AnomalyDICOMWebDatastore
from monailabel_app.errors import AnomalyAppError
from monailabel_app.pipelines import retention

logger = logging.getLogger(__name__)

ROUND_SECONDS = 86_400.0
_lock = threading.Lock()
_last: dict[int, float] = {}


def now_and_then(app: Any) -> threading.Thread | None:
    """A round in a thread of its own, unless the last one was today; to be called often. Returns the thread."""
    with _lock:
        last = _last.get(id(app))
        if last is not None and time.monotonic() - last < ROUND_SECONDS:
            return None
        _last[id(app)] = time.monotonic()
    thread = threading.Thread(target=_round, args=(app,), name="retention", daemon=True)
    thread.start()
    return thread


def folders(app: Any) -> retention.Folders:
    """Where this server keeps what."""
    datastore, sessions, store = app.datastore(), app.sessions(), app.analyses.store
    path = Path(getattr(datastore, "_datastore_path", "") or ".").resolve()
    in_archive = isinstance(datastore, AnomalyDICOMWebDatastore)
    temporary = Path(tempfile.gettempdir())
    return retention.Folders(
        Path(app.app_dir),
        studies=path if isinstance(datastore, LocalDatastore) and not in_archive else None,
        archive=path if in_archive else None,
        sessions=None if sessions is None else Path(sessions.store_path),
        analyses=None if store is None else store.folder,
        # The server has a folder of its own in there.
        temporary=temporary.parent if temporary.name.startswith("anomaly_server_") else temporary,
    )


def check_conf(conf: Mapping[str, str]) -> None:
    """Raises InvalidSettings for ages that are none."""
    retention.with_conf((), conf)


def run(app: Any, dry_run: bool = False) -> list[retention.Removed]:
    """One round with what ``--conf`` says. Raises InvalidSettings."""
    # Analyses have an age and a bound of their own (--conf cache_days, disk_cache_mb).
    places = [place for place in retention.places(folders(app)) if place.kind != "analyses"]
    taken = retention.with_conf(places, app.conf)
    results = retention.purge(taken, dry_run=dry_run, keep=set(app.jobs.working()), most=retention.MOST_REMOVED)
    gone = [result for result in results if result.things or result.failed]
    if gone and not dry_run:
        for result in gone:
            metrics.count_purged(result.kind, result.things, result.bytes)
        removed = {result.kind: {"things": result.things, "bytes": result.bytes} for result in gone}
        outcome = "failed" if any(result.failed for result in gone) else "ok"
        audit.note("purge", outcome, removed=removed)
        logger.info("retention: %d things removed", sum(result.things for result in gone))
    return results


def _round(app: Any) -> None:
    with acting(SERVER):
        try:
            run(app)
        except (OSError, AnomalyAppError) as error:
            logger.warning("what is old could not be removed: %s", type(error).__name__)
