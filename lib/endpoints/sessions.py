"""``/session/``: a scan that is kept outside of the datastore until the session expires.

MONAI Label keeps the files under the names that the client gave and writes them into its log, unpacks an archive
without any limit, numbers sessions by clock and network card, and tells where on the server's disk they lie.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, HTTPException, UploadFile
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions

from lib.errors import InvalidRequest, UnknownImage
from lib.perimeter.body_limit import Limits, check_space
from lib.unpacking import UnpackLimits, entries_of, unpack
from lib.uploads import ending_of, keep

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Session"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
# Unpacked over what an upload may have.
_UNPACKED = 4
# The client's name of one file is kept where nothing is in it but what file names have.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ ()-]{0,100}(\.[A-Za-z0-9]{1,10}){0,3}")


@router.put("/session/", summary="Upload a scan for this session only")
def create_session(
    uncompress: bool = False, expiry: int = 0, files: list[UploadFile] = File(...), user: User = _USER
) -> dict[str, Any]:
    """Keep one file, the files of a series, or (``uncompress``) an archive of a scan, until the session expires."""
    sessions = _sessions()
    store = Path(sessions.store_path)
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="anomaly_session_") as folder:
        image = _received(files, uncompress, Path(folder))
        session_id = str(uuid.uuid4())
        try:
            # Made before the scan is moved there, so that nobody else can look into it meanwhile.
            (store / session_id).mkdir(mode=0o700)
            _, session = sessions.add_session(str(image), max(expiry, 0), False, session_id)
        except BaseException:
            # MONAI Label's cleaning stops at a folder without a record: no later session would expire.
            shutil.rmtree(store / session_id, ignore_errors=True)
            raise
    return {"session_id": session_id, "session_info": about(session)}


@router.get("/session/{session_id}", summary="A session's scan, or what is known of it")
def get_session(session_id: str, update_ts: bool = False, image: bool = False, user: User = _USER):
    """The session's file with ``image``, else when it was made and used."""
    session = _found(session_id, update_ts)
    if not image:
        return about(session)
    if not Path(session.image).is_file():
        raise InvalidRequest("expected a session of one file to download, this one holds a folder of files")
    return FileResponse(session.image, media_type="application/octet-stream", filename=Path(session.image).name)


@router.delete("/session/{session_id}", summary="End a session")
def remove_session(session_id: str, user: User = _USER) -> dict[str, Any]:
    """Remove the session and its scan."""
    session = _found(session_id, False)
    _sessions().remove_session(session_id)
    return about(session)


def about(session: SessionInfo) -> dict[str, Any]:
    """What MONAI Label says of a session, without the server's folders."""
    return {**session.to_json(), "path": "", "image": Path(session.image).name}


def _received(files: list[UploadFile], uncompress: bool, folder: Path) -> Path:
    """The scan as one file or as a folder of files, named by us. Raises AnomalyAppError."""
    whole = folder / "scan"
    if uncompress:
        if len(files) != 1:
            raise InvalidRequest(f"expected one archive to unpack, got {len(files)} files")
        archive = keep(files[0], folder / "archive")
        limits = UnpackLimits(total=_UNPACKED * Limits.of(settings.MONAI_LABEL_APP_CONF or {}).upload)
        entries = entries_of(archive, limits)
        if not entries:
            raise InvalidRequest("expected an archive of a scan, got one without files")
        check_space(sum(entry.size for entry in entries), (folder, Path(_sessions().store_path)), copies=1)
        whole.mkdir()
        unpack(archive, whole, limits)
        return whole
    if len(files) == 1:
        name = Path(files[0].filename or "").name
        return keep(files[0], folder / (name if _PLAIN.fullmatch(name) else f"scan{ending_of(name)}"))
    whole.mkdir()
    for number, file in enumerate(files):
        keep(file, whole / f"{number:06d}{ending_of(file.filename)}")
    return whole


def _sessions() -> Sessions:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(status_code=406, detail="sessions are switched off on this server")
    return sessions


def _found(session_id: str, update: bool) -> SessionInfo:
    session = _sessions().get_session(session_id, update_ts=update)
    if session is None:
        raise UnknownImage(f"no session {session_id[:80]!r}: it may have expired, create one with PUT /session/")
    return session
