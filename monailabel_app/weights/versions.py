"""Versions of a trained model: published by one atomic rename, served by name, rolled back by one pointer.

The layout is that of ``version_layout``. The only change that a server sees is the replacement of CURRENT, so that a
kill or a power cut at any moment leaves either the old or the new model serving, both whole. Before anything is
published beside a flat folder, that one is adopted as a version: copied, served from there, and only then taken away
from its old place.

Changes take a lock per model (a file lock, which the system releases when a process dies), so that two of them at
once come one after the other. Reading takes none. Numbers are not used twice, because stored results name them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from monailabel_app.errors import PublishFailed, UnknownModel
from monailabel_app.files import WRITING, flush, replace_file

from .durable import STAGING, append_line, flush_folder, fresh_name, lock
from .model_folder import CONFIG, SUMS, VERSIONS, is_version, verify
from .version_layout import (
    CURRENT,
    FLAT_VERSION,
    HISTORY,
    SHIPPED_VERSION,
    SITE_CALIBRATIONS,
    TRAINED,
    Version,
    available,
    check_name,
    current,
    history,
    home,
    locate,
    normalised,
    numbers,
    pointer,
    recorded_hash,
    serving_version,
    shipped_folder,
    split_id,
    use_file,
    versions,
)

logger = logging.getLogger(__name__)

__all__ = [
    "SHIPPED_VERSION",
    "Version",
    "check_name",
    "current",
    "history",
    "locate",
    "new_staging",
    "promote",
    "publish",
    "remove",
    "remove_model",
    "rollback",
    "serving_version",
    "split_id",
    "versions",
]

LEFTOVER_SECONDS = 24 * 3600.0
_OWN = {VERSIONS, CURRENT, HISTORY, SITE_CALIBRATIONS}
_REMOVED, _LOCK = ".removed-", ".lock"


def new_staging(root: Path, name: str) -> Path:
    """An empty folder to write a model into before it is published; on the same disk, seen by nobody.

    What is left there by a killed process is cleaned away by a later publish.
    """
    check_name(name)
    folder = home(root, name) / VERSIONS / fresh_name()
    folder.mkdir(parents=True)
    return folder


def publish(root: Path, name: str, staged: Path, *, promote: bool, reason: str = "") -> Version:
    """Move a sealed model folder in as the next version, and let it serve when ``promote``.

    staged: moved, not copied, when it lies on the same disk (``new_staging``). reason: goes into the history; no
    patient data. Raises CorruptModel when the staged folder is not whole, InvalidSettings for a bad name, and
    PublishFailed when the disk refuses; the model that serves is untouched in all three cases.
    """
    check_name(name)
    base, staged = home(root, name), Path(staged)
    digest = verify(staged)
    with _named_errors(name):
        (base / VERSIONS).mkdir(parents=True, exist_ok=True)
        ready = _on_this_disk(staged, base)
        os.utime(ready)  # Not to be taken for a leftover while waiting for the lock.
        flush_folder(ready)
        with lock(base / _LOCK):
            _clean(root, base)
            _adopt_flat(root, name)
            before = pointer(root, name)
            version = _move_in(root, name, ready)
            if promote:
                _point(base, version)
            _record(base, "publish", version, digest, reason, serving=version if promote else None, before=before)
    if ready != staged:
        shutil.rmtree(staged, ignore_errors=True)
    return Version(name, version, base / VERSIONS / version, digest, promote)


def promote(root: Path, name: str, version: str, *, reason: str = "") -> Path:
    """Let a version (or ``shipped``) serve; returns its folder.

    Raises UnknownModel for a version that is not there, CorruptModel for one that is not whole.
    """
    check_name(name)
    base, version = home(root, name), normalised(version)
    locate(root, name, version)
    with _named_errors(name):
        base.mkdir(parents=True, exist_ok=True)
        with lock(base / _LOCK):
            _adopt_flat(root, name)
            return _serve(root, name, "promote", version, reason)


def rollback(root: Path, name: str, *, reason: str = "") -> Path:
    """Let the version serve again that served before the present one, or the shipped namesake; returns its folder.

    Versions that were removed meanwhile are skipped. Raises UnknownModel for a name that is not there, PublishFailed
    when nothing served before, CorruptModel when what served before is not whole.
    """
    check_name(name)
    base = home(root, name)
    if pointer(root, name) is None and not (base / CONFIG).is_file():
        locate(root, name)
        raise PublishFailed(f"expected a trained version of {name} to roll back from, the shipped one serves already")
    with _named_errors(name), lock(base / _LOCK):
        _adopt_flat(root, name)
        version = _previous(root, name)
        if version is None:
            there_is = ", ".join(number for number in numbers(base) if number != pointer(root, name)) or "none"
            raise PublishFailed(
                f"expected a version of {name} that served before {pointer(root, name)}, there was none; choose one: "
                f"python main.py models promote {name} VERSION (others: {there_is})"
            )
        return _serve(root, name, "rollback", version, reason)


def remove(root: Path, name: str, version: str, *, reason: str = "") -> None:
    """Delete a version that does not serve.

    Raises PublishFailed for the one that serves and for ``shipped``, UnknownModel for one that is not there.
    """
    check_name(name)
    base, version = home(root, name), normalised(version)
    folder = locate(root, name, version)
    if version == SHIPPED_VERSION:
        raise PublishFailed(f"expected a published version of {name}, got the shipped one, which belongs to the app")
    with _named_errors(name), lock(base / _LOCK):
        if pointer(root, name) == version:
            raise PublishFailed(
                f"expected a version of {name} that does not serve, got {version}, which does; first let another "
                f"serve: python main.py models rollback {name}, or models promote {name} VERSION"
            )
        digest = recorded_hash(folder)
        gone = folder.with_name(fresh_name(f"{_REMOVED}{version}-"))
        os.rename(folder, gone)
        use_file(base / SITE_CALIBRATIONS, version).unlink(missing_ok=True)
        _record(base, "remove", version, digest, reason, serving=None, before=pointer(root, name))
        shutil.rmtree(gone, ignore_errors=True)


def remove_model(root: Path, name: str) -> None:
    """Delete every version of a trained model and its history at once; a shipped namesake then serves.

    Raises UnknownModel when there is no trained model of that name.
    """
    check_name(name)
    base = home(root, name)
    if not base.is_dir() or {path.name for path in base.iterdir()} <= {SITE_CALIBRATIONS}:
        raise UnknownModel(f"expected a trained model, got {name!r}; see: python main.py models list")
    with _named_errors(name), lock(base / _LOCK):
        gone = base.with_name(fresh_name(f"{_REMOVED}{name}-"))
        os.rename(base, gone)
        if (gone / SITE_CALIBRATIONS).is_dir() and shipped_folder(root, name) is not None:
            base.mkdir()  # those of the shipped namesake are no part of what is removed
            os.rename(gone / SITE_CALIBRATIONS, base / SITE_CALIBRATIONS)
    shutil.rmtree(gone, ignore_errors=True)


def _move_in(root: Path, name: str, ready: Path) -> str:
    """Rename to the next free number. A version is never empty, so a rename onto one fails on every system."""
    base = home(root, name)
    used = [entry.get("version") for entry in history(root, name)]
    used += [part for entry in os.listdir(base / VERSIONS) for part in [entry.removeprefix(_REMOVED).split("-")[0]]]
    number = max((int(v) for v in used if isinstance(v, str) and is_version(v)), default=0)
    while True:
        number += 1
        target = base / VERSIONS / f"{number:04d}"
        try:
            os.rename(ready, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and not target.exists():
                raise
            continue
        flush(base / VERSIONS)
        return target.name


def _adopt_flat(root: Path, name: str) -> None:
    """Make a flat folder the serving version; killed anywhere in between, it goes on serving or is the version."""
    base = home(root, name)
    flat = [path for path in base.iterdir() if path.name not in _OWN and not path.name.startswith(".")]
    digest = recorded_hash(base)
    version = next((v.version for v in versions(root, name) if digest and v.hash == digest), None)
    if pointer(root, name) is None:
        if not (base / CONFIG).is_file():
            return
        if version is None:
            copy = new_staging(root, name)
            for path in flat:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy / path.name)
            flush_folder(copy)
            version = _move_in(root, name, copy)
        _point(base, version)
        site = base / SITE_CALIBRATIONS
        if use_file(site, FLAT_VERSION).is_file():
            os.replace(use_file(site, FLAT_VERSION), use_file(site, version))
        _record(base, "adopt", version, digest, "was a flat folder", serving=version, before=None)
    elif version is None:
        if (base / CONFIG).is_file():
            logger.warning("model/%s holds a flat model folder beside its versions: not used, left alone", name)
        return
    # The checksum list goes last, because it tells a later call, after a kill, that the rest is a copy.
    for path in sorted(flat, key=lambda path: path.name == SUMS):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _serve(root: Path, name: str, action: str, version: str, reason: str) -> Path:
    base, folder, before = home(root, name), locate(root, name, version), pointer(root, name)
    digest = verify(folder)
    _point(base, version)
    _record(base, action, version, digest, reason, serving=version, before=before)
    return folder


def _previous(root: Path, name: str) -> str | None:
    """What served before: the history read as a stack that publishing pushes on and a rollback pops."""
    stack: list[str] = [SHIPPED_VERSION]
    for entry in history(root, name):
        version, before = entry.get("serving"), entry.get("before")
        if not isinstance(version, str):
            continue
        if isinstance(before, str) and stack[-1] != before:
            stack.append(before)
        if entry.get("action") == "rollback" and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif stack[-1] != version:
            stack.append(version)
    serving = pointer(root, name)
    # A kill between the pointer and the record leaves a version out of the history: the present one is then not on
    # top, and an earlier one is known only as what the next change replaced.
    if stack[-1] == serving:
        stack.pop()
    there = available(root, name)
    return next((version for version in reversed(stack) if version in there and version != serving), None)


def _point(base: Path, version: str) -> None:
    replace_file(base / CURRENT, f"{version}\n", lasting=True)


def _record(
    base: Path, action: str, version: str, digest: str, reason: str, *, serving: str | None, before: str | None
) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"time": now, "action": action, "version": version, "hash": digest, "reason": reason}
    entry |= {"serving": serving, "before": before}
    try:
        append_line(base / HISTORY, json.dumps(entry))
    except OSError as error:
        # What was recorded has happened already, so it must not be reported as failed.
        logger.warning("the history of model %s could not be written (%s)", base.name, error.strerror)


def _on_this_disk(staged: Path, base: Path) -> Path:
    """The staged folder itself when a rename can move it, else a copy beside the versions."""
    if staged.stat().st_dev == (base / VERSIONS).stat().st_dev and not staged.is_symlink():
        return staged
    copy = base / VERSIONS / fresh_name()
    shutil.copytree(staged, copy)
    verify(copy)
    return copy


def _clean(root: Path, base: Path) -> None:
    """Delete what killed processes left: half removed folders, and staged ones that nobody has touched for a day."""
    limit = time.time() - LEFTOVER_SECONDS
    for parent in (base, base / VERSIONS, Path(root) / TRAINED):
        for path in parent.iterdir():
            if path.name.startswith(_REMOVED) or (path.name.startswith((STAGING, WRITING)) and _touched(path) < limit):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _touched(path: Path) -> float:
    try:
        return max(entry.stat().st_mtime for entry in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:
        return time.time()


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PublishFailed(
            f"expected to write the versions of model {name}, the disk refused ({error.strerror}); the model that "
            "serves is unchanged; make room or mend the permissions of model/, then try again"
        ) from error
