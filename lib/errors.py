"""Errors only a server can have; what is wrong with a scan or model is in ``monailabel_app.errors``."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from starlette.responses import JSONResponse

from monailabel_app.errors import AnomalyAppError


def place_of(error: BaseException) -> str:
    """Where an unexpected error came from, for the log; without its text, in which a patient's file may be named."""
    return f"{type(error).__name__} in\n{''.join(traceback.format_tb(error.__traceback__))}"


async def answer_error(scope, receive, send, error: AnomalyAppError, headers: Mapping[str, str] | None = None) -> None:
    """Answer an ASGI request with the error's status and ``{"detail": text}``, for layers outside of the guard.

    headers: in addition; ``retry_after`` (s) of an error becomes its Retry-After.
    """
    later = getattr(error, "retry_after", None)
    said = {"Cache-Control": "no-store", **({"Retry-After": f"{later:.0f}"} if later is not None else {})}
    answer = JSONResponse({"detail": str(error)}, status_code=error.status, headers={**said, **(headers or {})})
    await answer(scope, receive, send)


class UnknownImage(AnomalyAppError):
    """No image, label or session of that id."""

    status = 404


class InvalidRequest(AnomalyAppError):
    """The request itself is malformed: unsafe id, missing image, parameters that are not JSON."""


class NotAllowed(AnomalyAppError):
    """This server does not do that."""

    status = 403


class UnknownJob(AnomalyAppError):
    """No job of that id; those that are over are forgotten after a while."""

    status = 404


class Later(AnomalyAppError):
    """Not now; ``retry_after`` (s) goes into the answer."""

    status = 503

    def __init__(self, message: str, retry_after: float = 30.0):
        super().__init__(message)
        self.retry_after = retry_after


class ServerBusy(Later):
    """Too many analyses are waiting, or the device has no memory left."""


class ArchiveUnreachable(AnomalyAppError):
    """The DICOMweb archive did not answer, or refused."""

    status = 502


class ArchiveTimeout(AnomalyAppError):
    """The DICOMweb archive took longer than the settings allow."""

    status = 504


class ArchiveSlow(ArchiveUnreachable):
    """The DICOMweb archive took too long."""

    status = 504


class ArchiveRefused(AnomalyAppError):
    """The DICOMweb archive answered, and did not take an object: read-only, full, or a kind it does not know."""

    status = 502


class NothingFound(AnomalyAppError):
    """An object that shows what was found, where nothing was found."""

    status = 404


class ScanReplaced(AnomalyAppError):
    """What was sent is about a scan that another one has replaced under its id."""

    status = 409


class StudyTaken(AnomalyAppError):
    """Another reader works on the study."""

    status = 409


class TooLarge(AnomalyAppError):
    """A request is larger than this server takes: its body (413), its address (414) or its headers (431)."""

    status = 413

    def __init__(self, message: str, status: int = 413):
        super().__init__(message)
        self.status = status


class NoSpace(AnomalyAppError):
    """The disk has too little room for what was sent."""

    status = 507
