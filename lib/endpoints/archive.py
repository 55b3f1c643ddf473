"""``/proxy/dicom/...``: the way of the OHIF viewer to the DICOMweb archive.

MONAI Label's own way drops the query, so that OHIF's search for one patient returns the studies of all
patients and lists them as that patient's; it waits for the archive inside the event loop and without end; and it hands
the viewer's headers on. Here the query goes along, in threads of its own (an archive that is gone must not use up
those of everybody else), piece by piece, and only addresses below the archive's DICOMweb root are reached.
"""

from __future__ import annotations

import logging
import tempfile
from typing import BinaryIO

import anyio
import anyio.to_thread
import requests
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib.access.principal import ADMIN, current
from lib.archive_passage import (
    archive_root,
    ask,
    check_store,
    from_archive,
    pieces,
    split_operation,
    to_archive,
)
from lib.errors import ArchiveUnreachable, NotAllowed

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Others"])
logger = logging.getLogger(__name__)

MOST_AT_ONCE = 16
_IN_MEMORY = 2**20
_threads: RunVar[anyio.CapacityLimiter] = RunVar("archive_threads")
# What comes from the archive may be a page (a structured report as HTML): nothing in it is run here.
_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}


@router.get("/proxy/dicom/{path:path}", include_in_schema=False)
@router.post("/proxy/dicom/{path:path}", include_in_schema=False)
async def to_dicomweb(
    request: Request, path: str, user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
) -> Response:
    """Pass a request on to the archive the server was started with, and its answer back."""
    archive_root()
    operation, address = split_operation(path)
    headers, query = to_archive(request.headers), request.url.query
    if request.method != "POST":
        return Passed(await _in_thread(ask, "GET", address, query, headers))
    check_store(operation, path)
    check_may_store()
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
        async for piece in request.stream():
            if body.tell() + len(piece) > _IN_MEMORY:
                await _in_thread(body.write, piece)
            else:
                body.write(piece)
        body.seek(0)
        return Passed(await _in_thread(ask, "POST", address, query, headers, _Sized(body)))


def check_may_store() -> None:
    """Raises NotAllowed for a reader, unless the server was started with ``--conf viewer_stores true``."""
    allowed = str((settings.MONAI_LABEL_APP_CONF or {}).get("viewer_stores", "false")).lower() in {"true", "1", "yes"}
    if current().role != ADMIN and not allowed:
        raise NotAllowed(
            "storing objects in the archive from the viewer is for administrators; results are stored with POST "
            "/anomaly/dicom (start the server with --conf viewer_stores true to allow readers the viewer's own way)"
        )


class Passed(Response):
    """The archive's answer, passed on while it comes; where it breaks off, so does this one."""

    def __init__(self, answer: requests.Response):
        super().__init__(status_code=answer.status_code, headers={**from_archive(answer.headers), **_POLICY})
        if "content-length" not in answer.headers and "content-length" in self.headers:
            del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope, receive, send) -> None:
        """Send head and body; stop when the viewer has gone away."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                await self._send_all(send)
                group.cancel_scope.cancel()
        finally:
            self._answer.close()

    async def _send_all(self, send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = pieces(self._answer)
        try:
            while piece := await _in_thread(next, body, b""):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ArchiveUnreachable:
            # Without its last message the answer is cut off, which the viewer notices; nothing else can be said by now.
            logger.warning("the DICOMweb archive went away while it was answering")
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Sized:
    """A file with its length, as the archive is to be told how much will come."""

    def __init__(self, file: BinaryIO):
        self._file = file
        file.seek(0, 2)
        self.len = file.tell()
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def __iter__(self):
        return iter(lambda: self._file.read(2**18), b"")


async def _until_gone(receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _in_thread(function, *arguments):
    try:
        threads = _threads.get()
    except LookupError:
        threads = anyio.CapacityLimiter(MOST_AT_ONCE)
        _threads.set(threads)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=threads)
