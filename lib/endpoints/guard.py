"""Around every request: unsafe ids are refused, and no error leaves as a bare "Internal Server Error"."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from lib import metrics
from lib.disk import disk_trouble
from lib.endpoints.api_schema import allowed
from lib.errors import InvalidRequest, place_of
from lib.ids import check_image_id, check_session_id, check_tag
from lib.perimeter.address import below_api
from monailabel_app.errors import AnomalyAppError

logger = logging.getLogger(__name__)

_CHECKS: dict[str, Callable[[str], str]] = {
    "image": check_image_id,
    "label": check_image_id,
    "id": check_image_id,
    "tag": check_tag,
    "session_id": check_session_id,
}
_BAD_ARCHIVES = (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile)
_GUARDED = ("/infer", "/datastore", "/session", "/activelearning", "/batch", "/anomaly", "/proxy")
# What follows in these addresses is an image id.
_OF_IMAGES = frozenset({"results", "studies", "reviews", "dicom"})


class Guard:
    """ASGI callable around MONAI Label's router."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Check the query, pass the request on, and answer its errors as JSON ``{"detail": text}``."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting_send(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = _not_kept(scope, message)
            await send(message)

        try:
            check_request(scope)
            _tell_of_disks(scope)
            await self.app(scope, receive, noting_send)
        except HTTPException as error:
            if error.status_code == 405:
                methods = allowed(scope["app"], _below_root(scope))
                error.headers = {**(error.headers or {}), **({"Allow": ", ".join(methods)} if methods else {})}
            raise
        except RequestValidationError:
            raise
        except Exception as error:
            if started:
                raise
            status, detail = describe(error)
            metrics.count_error(type(error).__name__)
            if status >= 500:
                logger.error("request failed with %s", place_of(error))
            else:
                # Not the text: an image id may be a patient's name.
                logger.info("request refused with %d (%s)", status, type(error).__name__)
            later = getattr(error, "retry_after", None)
            headers = {"Retry-After": f"{later:.0f}"} if later is not None else None
            await JSONResponse({"detail": detail}, status_code=status, headers=headers)(scope, receive, noting_send)


def _tell_of_disks(scope: dict[str, Any]) -> None:
    """The framework answers 400 where it cannot spool a form to the disk; here it says what is wrong with the disk."""
    handlers, statuses = scope.get("starlette.exception_handlers") or ({}, {})
    own = handlers.get(HTTPException)
    if own is None:
        return

    async def answer(request, error):
        trouble = disk_trouble(error.__cause__) if error.__cause__ is not None else None
        if trouble is None:
            answered = own(request, error)
            return await answered if inspect.isawaitable(answered) else answered
        metrics.count_error(type(trouble).__name__)
        logger.error("request refused with %d (%s)", trouble.status, type(trouble).__name__)
        return JSONResponse({"detail": str(trouble)}, status_code=trouble.status)

    own_errors = {HTTPException: answer, RequestValidationError: _of_wrong_form}
    scope["starlette.exception_handlers"] = ({**handlers, **own_errors}, statuses)


async def _of_wrong_form(request, error: RequestValidationError) -> JSONResponse:
    """What is wrong and where, without what was sent.

    The framework repeats it, and fails over a NaN or half a letter in it: JSON cannot hold them.
    """
    metrics.count_error(type(error).__name__)
    faults = [
        {
            "type": fault["type"],
            "loc": [part if isinstance(part, int) else _plain(part) for part in fault["loc"]],
            "msg": _plain(fault["msg"]),
        }
        for fault in error.errors()
    ]
    return JSONResponse({"detail": faults}, status_code=422)


def _plain(text: object) -> str:
    return str(text)[:200].encode("utf-8", "replace").decode("utf-8")


def _not_kept(scope: Mapping[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """The head of an answer; a scan, a label or what is said of them is not to lie in a browser's cache."""
    headers = list(message.get("headers", ()))
    if not below_api(scope).startswith(_GUARDED) or any(name.lower() == b"cache-control" for name, _ in headers):
        return message
    return {**message, "headers": [*headers, (b"cache-control", b"no-store")]}


def _below_root(scope: Mapping[str, Any]) -> str:
    return scope["path"].removeprefix(scope.get("root_path") or "")


def check_request(scope) -> None:
    """Raises InvalidRequest when an id, tag or session in the address could leave its folder."""
    path = below_api(scope)
    if not path.startswith(_GUARDED):
        return
    for key, value in parse_qsl(scope["query_string"].decode("latin-1")):
        if key in _CHECKS:
            _CHECKS[key](value)
    if path.startswith("/datastore") and scope["method"] in {"GET", "HEAD", "DELETE"}:
        for key, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            if not value and key in {"image", "label", "id"}:
                raise InvalidRequest(f"expected the {key}'s id, got an empty one")
    if path.startswith("/session/") and path != "/session/":
        check_session_id(path.removeprefix("/session/"))
    below = path.removeprefix("/anomaly/").split("/")
    if path.startswith("/anomaly/") and below[0] in _OF_IMAGES and len(below) > 1 and below[1:] != [""]:
        check_image_id(below[1])


def describe(error: Exception) -> tuple[int, str]:
    """HTTP status and text for an error raised while a request was served."""
    if isinstance(error, AnomalyAppError):
        return error.status, str(error)
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return 404, error.msg
    if isinstance(error, MONAILabelException):
        return (
            400 if error.error in {MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR} else 500
        ), error.msg
    if isinstance(error, ClientDisconnect):
        return 400, "the connection was closed before the request was whole"
    if isinstance(error, MemoryError):
        return 503, "the server has too little memory for this now: send it again later"
    if isinstance(error, json.JSONDecodeError):
        return (
            400,
            f"expected parameters as JSON, got text that is not ({error.msg} at character {error.pos})",
        )
    if isinstance(error, _BAD_ARCHIVES):
        return (
            400,
            "expected an archive (.zip, .tar, .tar.gz) that can be unpacked, got another or a damaged file",
        )
    trouble = disk_trouble(error)
    if trouble is not None:
        return trouble.status, str(trouble)
    return 500, f"the server failed unexpectedly ({type(error).__name__}); its log has the details"
