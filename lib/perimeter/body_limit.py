"""How large a request may be, told before any of it is kept.

A body's length is read from its header where it has one, and counted while it comes in any case. Only addresses that
take scans, labels, archives and models get ``--conf max_upload_mb``; what is JSON or a form gets 1 MiB.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from fastapi import HTTPException
from monailabel.config import settings

from lib.errors import InvalidRequest, NoSpace, TooLarge, answer_error
from lib.perimeter.address import below_api
from monailabel_app.errors import AnomalyAppError

SMALL = 2**20
# The largest real heads: 0.5 mm at 7 T (448 x 448 x 320 float32) are 257 MB unpacked, a scanner's folder of DICOM
# files with several series a few hundred.
UPLOAD_MB = 1024
LONGEST_PATH, LONGEST_QUERY, MOST_PARAMETERS = 4096, 16384, 100
LONGEST_HEAD, MOST_HEADERS = 32768, 100
_UPLOADS = (
    ("PUT", re.compile(r"/datastore/(image|label)?")),
    ("PUT", re.compile(r"/session/?")),
    ("PUT", re.compile(r"/model/[^/]+")),
    ("POST", re.compile(r"/infer/[^/]+")),
    ("POST", re.compile(r"/proxy/dicom/.*")),
)
# The framework spools a body to disk, and MONAI Label copies it twice before it is where it belongs.
_COPIES, _RESERVE = 3, 64 * 2**20
_LARGE = 8 * 2**20
# Read and thrown away before a refusal, as a client that is still sending may not see the answer otherwise.
_DRAINED, _DRAIN_SECONDS = 32 * 2**20, 5.0


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a body that holds files."""

    upload: int = UPLOAD_MB * 2**20

    @classmethod
    def of(cls, conf: Mapping[str, Any]) -> Limits:
        """What ``--conf max_upload_mb`` says. Raises InvalidRequest for what is no whole number above zero."""
        text = str(conf.get("max_upload_mb", UPLOAD_MB))
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            raise InvalidRequest(f"expected --conf max_upload_mb to be a whole number of MiB, got {text[:40]!r}")
        return cls(int(text) * 2**20)


class BodyLimit:
    """ASGI callable: 413, 414, 431, 400 or 507 with a reason for what is too large."""

    def __init__(self, app):
        self.app = app
        self._limits = Limits.of(settings.MONAI_LABEL_APP_CONF or {})

    async def __call__(self, scope, receive, send) -> None:
        """Look at the sizes that are said, and count what comes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            check_head(scope)
            limit, length = self._limit(scope), said_length(scope)
            if scope["method"] in {"GET", "HEAD", "DELETE"}:
                # MONAI Label's client repeats the length of its last upload there, without a body.
                length = None
            if length is not None and length > limit:
                raise _too_large(limit)
            if limit > SMALL and (length or 0) > _LARGE:
                await anyio.to_thread.run_sync(check_space, length, _folders(scope))
        except AnomalyAppError as error:
            await _drain(receive)
            await answer_error(scope, receive, send, error, {"Connection": "close"})
            return
        seen, checked = 0, 0

        async def counting_receive():
            nonlocal seen, checked
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                error = _too_large(limit) if seen > limit else None
                if error is None and length is None and seen - checked > 4 * _LARGE:
                    checked = seen
                    error = await anyio.to_thread.run_sync(_space_error, seen, _folders(scope))
                if error is not None:
                    if message.get("more_body"):
                        await _drain(receive)
                    # The one kind of error that the framework's reading of forms lets through.
                    raise HTTPException(error.status, str(error))
            return message

        await self.app(scope, counting_receive, send)

    def _limit(self, scope) -> int:
        path = below_api(scope)
        takes_files = any(scope["method"] == method and known.fullmatch(path) for method, known in _UPLOADS)
        return self._limits.upload if takes_files else SMALL


def check_head(scope) -> None:
    """Raises TooLarge or InvalidRequest for an address or headers longer than any client of this server sends."""
    query = scope.get("query_string", b"")
    if len(scope.get("raw_path") or scope["path"].encode()) > LONGEST_PATH or len(query) > LONGEST_QUERY:
        raise TooLarge(
            f"expected an address of at most {LONGEST_PATH} characters, and {LONGEST_QUERY} of a query; got a longer "
            "one",
            414,
        )
    if query.count(b"&") >= MOST_PARAMETERS:
        raise InvalidRequest(f"expected at most {MOST_PARAMETERS} parameters in the address, got more")
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > LONGEST_HEAD:
        raise TooLarge(f"expected at most {MOST_HEADERS} headers of {LONGEST_HEAD // 1024} KiB together, got more", 431)


def said_length(scope) -> int | None:
    """The body's length in bytes as its header says; None where it comes in pieces. Raises InvalidRequest."""
    said = [value for name, value in scope["headers"] if name == b"content-length"]
    if not said:
        return None
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        # RFC 9112, 6.3: a proxy that goes by the other one would see another request behind this one.
        raise InvalidRequest("expected a body with a length or in pieces, got one that says both")
    if len(set(said)) > 1 or not said[0].isdigit() or len(said[0]) > 18:
        raise InvalidRequest("expected one Content-Length that is a whole number")
    return int(said[0])


def check_space(length: int, folders: tuple[Path, ...], copies: int = _COPIES) -> None:
    """Raises NoSpace where ``length`` bytes in ``copies`` would fill the disk of one of ``folders``."""
    error = _space_error(length, folders, copies)
    if error is not None:
        raise error


def _space_error(length: int, folders: tuple[Path, ...], copies: int = _COPIES) -> NoSpace | None:
    for folder in folders:
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        if free < length * copies + _RESERVE:
            return NoSpace(
                f"this server has {free // 2**20} MiB of disk left, too little to take an upload of "
                f"{length // 2**20} MiB safely: ask its administrator to make room"
            )
    return None


def _folders(scope) -> tuple[Path, ...]:
    """Where an upload is written: the temporary folder, and for the datastore its own."""
    folders = [Path(tempfile.gettempdir())]
    studies = settings.MONAI_LABEL_STUDIES
    if "/datastore/" in scope["path"] and not studies.startswith(("http://", "https://")):
        folders.append(Path(studies))
    return tuple(folders)


def _too_large(limit: int) -> TooLarge:
    hint = " (--conf max_upload_mb)" if limit > SMALL else ""
    return TooLarge(f"expected a request of at most {limit // 2**20} MiB, got a larger one{hint}")


async def _drain(receive) -> None:
    seen = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        while seen < _DRAINED:
            message = await receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return
