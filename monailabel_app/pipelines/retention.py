"""How long what shows patients is kept beside the datastore: where it lies, how old it may become, what is in use.

Never among it: scans, final labels, models, the audit log and its key, site calibrations, the list of the forgotten.
What users made (maps beside a scan, reports, training runs, prepared scans) stays until somebody says how long; what
can be made again at any time goes by itself.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.monitor import PROGRESS, RUNNING, read_progress

from . import old_files
from .old_files import Wanted

logger = logging.getLogger(__name__)

CACHE_DAYS, LOG_DAYS, TEMPORARY_DAYS = 7.0, 90.0, 1.0
# What one round of the server removes at most; the rest has its turn a day later.
MOST_REMOVED = 20_000
_UID = r"[0-9]+(?:\.[0-9]+){2,}"
_STAMP = r"[0-9]{8}-[0-9]{6}(?:-[0-9]{1,3})?"
_MAPS = r"(?:anomaly_map|reconstruction|uncertainty_map)"
_ANALYSES = r"[0-9a-f]{16,128}\.safetensors|\.writing-[0-9a-f]+(?:\.partial)?"
# Names that Python's tempfile draws: eight characters at the end.
_TEMPORARY = r"anomaly_(?:(?:map|upload|review|result|dicom)_[a-z0-9_]{8}|[a-z0-9_]{8}\.(?:nii\.gz|nii|nrrd|dcm))"
_REPORTS = rf"scoring/\.?{_STAMP}(?:-[0-9]+)?|(?:evaluation|cohort)/[^/]+|batch/batch\.(?:csv|html)"
_RUNS = rf"(?!scoring/|batch/|evaluation/|cohort/)[^/]+/{_STAMP}"
_PREPARED = r"prepared/.+|[A-Za-z0-9_]+_(?:train|val)(?:_extracted)?\.safetensors"
# Not labels/ and not the table: a review without findings is kept there alone.
_ARCHIVE = rf"(?:[0-9a-f]{{16,128}}/)?(?:{_UID}(?:\.partial|\.lock|\.nii\.gz|\.nrrd)?|results/[^/]+)"


@dataclass(frozen=True)
class Place:
    """One kind of thing in one folder.

    days: None for what stays until somebody says otherwise. what: for people. mine_only: not of other users.
    """

    kind: str
    folder: Path
    wanted: Wanted
    days: float | None
    what: str
    mine_only: bool = False


@dataclass(frozen=True)
class Removed:
    """What became of a kind: things and bytes that went (or would go), things that are in use, and that may not go."""

    kind: str
    things: int = 0
    bytes: int = 0
    in_use: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Folders:
    """The folders besides the app's own. None for those that there are not."""

    app: Path
    studies: Path | None = None
    archive: Path | None = None
    sessions: Path | None = None
    analyses: Path | None = None
    temporary: Path = Path(tempfile.gettempdir())

    @classmethod
    def usual(cls, app: Path, studies: Path | None = None) -> Folders:
        """As MONAI Label has them where no setting says otherwise."""
        home = Path.home() / ".cache" / "monailabel"
        archive = os.environ.get("MONAI_LABEL_DICOMWEB_CACHE_PATH") or home / "dicom"
        sessions = os.environ.get("MONAI_LABEL_SESSION_PATH") or home / "sessions"
        return cls(Path(app), studies, Path(archive), Path(sessions))


def places(folders: Folders) -> list[Place]:
    """Everything beside the datastore that shows patients."""
    app, cache = folders.app, CACHE_DAYS
    found = [
        Place("analyses", folders.analyses or app / "cache" / "analyses", _wanted(_ANALYSES, depth=1), cache,
              "analyses of scans"),
        Place("evaluation", app / "cache", _wanted(r"(?:evaluation|selftest)/.+"), cache,
              "scans prepared for evaluations"),
        Place("temporary", folders.temporary, _wanted(_TEMPORARY, whole=True, depth=1), TEMPORARY_DAYS,
              "what killed processes left", mine_only=True),
        Place("logs", app / "logs", _wanted(r"app\.log\.[0-9]+", depth=1), LOG_DAYS, "former parts of the log"),
        Place("reports", app / "runs", _wanted(_REPORTS, whole=True, depth=2), None, "reports and tables"),
        Place("runs", app / "runs", _wanted(_RUNS, whole=True, depth=2), None, "training runs"),
        Place("prepared", app / "cache", _wanted(_PREPARED), None, "scans prepared for training"),
    ]  # fmt: skip
    if folders.archive is not None:
        archived = _wanted(_ARCHIVE, whole=True, depth=3, by_use=True)
        found.append(Place("archive", folders.archive, archived, cache, "series fetched from the archive"))
    if folders.sessions is not None:
        kept = rf"{re.escape(folders.sessions.name)}/[0-9a-f-]{{36}}|\.upload_[a-z0-9_]{{8}}"
        found.append(
            Place("sessions", folders.sessions.parent, _wanted(kept, whole=True, depth=2), cache, "scans of sessions")
        )
    if folders.studies is not None:
        found.append(Place("maps", folders.studies, _wanted(rf"labels/{_MAPS}/[^/]+"), None, "maps kept beside scans"))
    return found


def kinds(folders: Folders) -> dict[str, Place]:
    """The places by their kinds."""
    return {place.kind: place for place in places(folders)}


def chosen(folders: Folders, what: Sequence[str] = (), older_than: float | None = None) -> list[Place]:
    """The places to purge. what: kinds, or ``all``; none for those that go by themselves. older_than: in days.

    Raises InvalidSettings naming the kinds, or for user's things without an age.
    """
    there = kinds(folders)
    unknown = [kind for kind in what if kind not in there and kind != "all"]
    if unknown:
        raise InvalidSettings(f"expected kinds out of all, {', '.join(there)}; got {', '.join(map(repr, unknown))}")
    if older_than is not None and not 0 <= older_than <= 36_500:
        raise InvalidSettings(f"expected days between 0 and 36500, got {older_than:g}")
    taken = [place for place in there.values() if (place.kind in what or "all" in what if what else place.days)]
    if older_than is not None:
        return [replace(place, days=older_than) for place in taken]
    ageless = [place.kind for place in taken if place.days is None]
    if ageless:
        raise InvalidSettings(f"users made {', '.join(ageless)}: say with --older-than DAYS how old they may become")
    return taken


def with_conf(found: Sequence[Place], conf: Mapping[str, str]) -> list[Place]:
    """The places that a server purges by itself. ``retention_days``: of what users made; 0, the default, keeps all.

    ``retention_cache_days`` (7): of what can be made again; 0 keeps all. Raises InvalidSettings.
    """
    made, caches = _days(conf, "retention_days", 0.0), _days(conf, "retention_cache_days", CACHE_DAYS)
    taken = []
    for place in found:
        days = made if place.days is None else caches if place.days == CACHE_DAYS else place.days
        if days:
            taken.append(replace(place, days=days))
    return taken


def purge(
    taken: Sequence[Place],
    *,
    dry_run: bool = False,
    keep: Collection[str] = (),
    most: int | None = None,
    now: float | None = None,
    told: Callable[[str, str, float, int], None] | None = None,
) -> list[Removed]:
    """Remove what is too old, kind by kind; with ``dry_run`` only look.

    keep: names (ids of images) whose things are in use now. most: things that are removed at most. told: kind, path,
    age (days) and bytes of each thing, for a list on the screen. Raises InvalidSettings where the system cannot do it
    safely.
    """
    if not old_files.SUPPORTED:
        raise InvalidSettings("expected a system that can empty folders safely (Linux, macOS), got another one")
    now = time.time() if now is None else now
    in_use: Collection[tuple[int, int]] | None = None
    results, left = [], most
    for place in taken:
        things = size = busy = failed = 0
        before = now - float(place.days or 0.0) * 86400.0
        for unit in list(old_files.units(place.folder, place.wanted)):
            if unit.time > before or (place.mine_only and not _is_mine(place.folder, unit)):
                continue
            if left is not None and left <= 0:
                break
            in_use = old_files.open_files() if in_use is None else in_use
            if unit.files & set(in_use) or _is_kept(unit, keep) or _is_running(place, unit):
                busy += 1
                continue
            try:
                gone = dry_run or old_files.remove(place.folder, unit, before=before, by_use=place.wanted.by_use)
            except OSError as error:
                logger.warning("something old of kind %s cannot be removed: %s", place.kind, type(error).__name__)
                failed += 1
                continue
            if gone:
                things, size = things + 1, size + unit.size
                left = None if left is None else left - 1
                if told is not None:
                    told(place.kind, str(place.folder.joinpath(*unit.where)), (now - unit.time) / 86400.0, unit.size)
        results.append(Removed(place.kind, things, size, busy, failed))
    return results


def _is_mine(folder: Path, unit: old_files.Unit) -> bool:
    try:
        return folder.joinpath(*unit.where).lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _is_kept(unit: old_files.Unit, keep: Collection[str]) -> bool:
    return any(name == kept or name.startswith(f"{kept}.") for name in unit.where for kept in keep)


def _is_running(place: Place, unit: old_files.Unit) -> bool:
    """A training that goes on; its process may be another one's than the server's."""
    if place.kind == "runs":
        return read_progress(place.folder.joinpath(*unit.where)).get("status") in RUNNING
    # What it trains on is of all of them.
    return place.kind == "prepared" and any(
        read_progress(file.parent).get("status") in RUNNING
        for file in (place.folder.parent / "runs").glob(f"*/*/{PROGRESS}")
    )


def _wanted(pattern: str, **how: Any) -> Wanted:
    return Wanted(re.compile(pattern), **how)


def _days(conf: Mapping[str, str], key: str, default: float) -> float:
    text = str(conf.get(key, default))
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36_500:
        raise InvalidSettings(f"expected --conf {key} as days between 0 and 36500, got {text[:40]!r}")
    return days
