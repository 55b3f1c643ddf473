"""What several commands check about their options before any work is begun, and what a refusing disk is told as."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from monailabel_app.errors import InvalidSettings
from monailabel_app.files import WRITING

_MEND = {
    errno.ENOENT: "check the path: a folder in it may be missing",
    errno.EACCES: "choose a place that this user may use, or have its rights changed",
    errno.ENOSPC: "free some space (python main.py purge removes old caches), or choose another place",
    errno.ENOTDIR: "check the path: what should be a folder is a file",
    errno.EISDIR: "name a file, not a folder",
}
_MEND |= {errno.EPERM: _MEND[errno.EACCES], errno.EROFS: _MEND[errno.EACCES], errno.EDQUOT: _MEND[errno.ENOSPC]}
_MEND[errno.EEXIST] = _MEND[errno.ENOTDIR]


def known_device(name: str | None) -> str | None:
    """An option's callback: the name of a device that is there. Raises typer.BadParameter."""
    if name is None or name in ("cpu", "auto"):
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:0, cuda:1, ..., got {name!r}")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name.partition(":")[2] or 0) >= count:
        there = f"{count} CUDA device{'s' * (count != 1)} here" if count else "no CUDA device that PyTorch can use here"
        raise typer.BadParameter(f"{name}: there is {there}; give --device cpu, or see: python main.py doctor")
    return name


def checked_output(path: Path | None, endings: Sequence[str]) -> None:
    """Make the folder that ``path`` will be written in, before work of minutes. Raises InvalidSettings, OSError."""
    if path is None:
        return
    if not path.name.lower().endswith(tuple(endings)):
        raise InvalidSettings(f"expected a file name ending in one of {', '.join(endings)}, got {path.name!r}")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


def of_the_disk(error: OSError) -> str:
    """What went wrong with a file, as one sentence that says what to do."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if place is not None and place.name.startswith(WRITING):
        place = place.parent  # The name that is written to before the file takes its place means nothing to anybody.
    reason = error.strerror or str(error) or type(error).__name__
    where = f": {place}" if place is not None else ""
    return f"{reason}{where}; {_MEND.get(error.errno, 'try again, with --verbose for all that is known')}"
