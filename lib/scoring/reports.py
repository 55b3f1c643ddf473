"""The reports of evaluations on this server: a folder each, named by time, below the app's ``runs/scoring``."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lib.errors import UnknownImage

logger = logging.getLogger(__name__)

SUMMARY, PAGE = "summary.json", "evaluation.html"
# What can be fetched of a report beside its page.
FILES = {
    "evaluation.json": "application/json",
    "evaluation.csv": "text/csv; charset=utf-8",
    "scans.csv": "text/csv; charset=utf-8",
    "evaluation.md": "text/markdown; charset=utf-8",
}
_ID = re.compile(r"[0-9]{8}-[0-9]{6}(-[0-9]{1,3})?")


def publish(folder: Path, made: Path, summary: Mapping[str, Any]) -> str:
    """Copy the files that an evaluation made into a report of its own; returns the report's id.

    folder: of all reports. made: of this evaluation's files. The report appears whole, by renaming. Raises OSError.
    """
    now = datetime.now(timezone.utc)
    stem = now.strftime("%Y%m%d-%H%M%S")
    staging = folder / f".{stem}-{os.getpid()}"
    staging.mkdir(parents=True)
    try:
        for name in (PAGE, *FILES):
            if (made / name).is_file():
                shutil.copyfile(made / name, staging / name)
        record = {"time": now.isoformat(timespec="seconds"), **summary}
        (staging / SUMMARY).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
        report = next(name for name in names if not (folder / name).exists())
        staging.rename(folder / report)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return report


def reports(folder: Path) -> list[dict[str, Any]]:
    """What there is, the newest first: id, the summary, and the files that can be fetched."""
    listed = []
    for path in sorted(folder.glob("*"), reverse=True):
        if not _ID.fullmatch(path.name) or not (path / SUMMARY).is_file():
            continue
        try:
            summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("a report cannot be read (%s)", type(error).__name__)
            continue
        files = [name for name in FILES if (path / name).is_file()]
        listed.append({"id": path.name, **summary, "page": (path / PAGE).is_file(), "files": files})
    return listed


def find(folder: Path, report: str, name: str = PAGE) -> Path:
    """A file of a report. Raises UnknownImage (404) for what is not there, whatever was asked for."""
    if _ID.fullmatch(report) and (name == PAGE or name in FILES):
        path = folder / report / name
        if path.is_file() and not path.is_symlink():
            return path
    raise UnknownImage("no such report: GET /anomaly/evaluation/ lists what there is")
