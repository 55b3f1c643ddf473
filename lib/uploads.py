"""Files that come with a request: kept under names of our own, in a folder that goes with the request.

MONAI Label keeps an upload under the end of the name that the client gave, and removes it only after an answer that was
no error.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,10}){1,2}")
_TWO_PARTS = (".nii.gz", ".seg.nrrd", ".tar.gz", ".tar.bz2", ".tar.xz")


def ending_of(name: str | None, default: str = "") -> str:
    """The ending of a client's file name, such as ``.nii.gz``; ``default`` where it has none that is a plain word."""
    lower = (name or "").lower()
    ending = next((known for known in _TWO_PARTS if lower.endswith(known)), Path(lower).suffix)
    return ending if _ENDING.fullmatch(ending) else default


@contextmanager
def received(file: UploadFile, default: str = ".nii.gz") -> Iterator[Path]:
    """The upload as ``upload`` + its ending, in a folder of this server's account alone, removed after use."""
    with tempfile.TemporaryDirectory(prefix="anomaly_upload_") as folder:
        yield keep(file, Path(folder) / f"upload{ending_of(file.filename, default)}")


def keep(file: UploadFile, path: Path) -> Path:
    """The upload's content at ``path``."""
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target, 2**20)
    return path
