"""``/logs/``: the end of the server's log, as text.

MONAI Label answers with a page that loads its scripts from the internet, or with the whole file however long.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import PlainTextResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Others"])

MOST_LINES, MOST_BYTES = 5000, 2 * 2**20
_PATIENCE_S = 10.0
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


@router.get("/logs/", summary="The end of the log", response_class=PlainTextResponse)
def log(lines: int = 300, html: bool = False, text: bool = True, refresh: int = 0, user: User = _ADMIN):
    """The last lines (1 to 5000), at most 2 MiB. MONAI Label's ``html``, ``text`` and ``refresh`` change nothing."""
    return PlainTextResponse(tail(Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log", lines))


@router.get("/logs/gpu", summary="What nvidia-smi says", response_class=PlainTextResponse)
def gpus(user: User = _ADMIN):
    """404 on a machine without NVIDIA's tools."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise HTTPException(404, "there is no nvidia-smi on this machine")
    try:
        done = subprocess.run([program], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HTTPException(503, f"nvidia-smi did not answer ({type(error).__name__})") from error
    return PlainTextResponse(done.stdout)


def tail(path: Path, lines: int) -> str:
    """The last ``lines`` of a file. Raises HTTPException 404."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MOST_BYTES))
            end = file.read(MOST_BYTES)
    except OSError as error:
        raise HTTPException(404, "there is no log file") from error
    kept = end.decode("utf-8", "replace").splitlines()[-min(max(lines, 1), MOST_LINES) :]
    return "\n".join(kept) + "\n"
