"""``/anomaly/metrics`` for Prometheus, and the layer that counts the requests."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from monailabel.config import settings
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from lib import metrics
from lib.figures import Everything

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Operation"])

# An address that no route has; one that was refused before it was looked for; one that the files of a page have.
NO_ROUTE, REFUSED, FILES = "none", "refused", "files"


@router.get("/anomaly/metrics", summary="Figures of this server for Prometheus", response_class=Response)
def read_metrics(request: Request) -> Response:
    """Text of Prometheus, or OpenMetrics for who accepts it. No patient, no image and no file is named in it."""
    try:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        text = encode(Everything())
    except (ValueError, TypeError, IndexError):
        # A version that is no number.
        encode, kind = choose_encoder("")
        text = encode(Everything())
    return Response(text, headers={"Content-Type": kind, "Cache-Control": "no-store"})


class Metrics:
    """ASGI callable: counts and times every request by its route template, which is known when it was answered."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def noting_send(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except HTTPException as error:
            status = error.status_code
            raise
        except RequestValidationError:
            status = 422
            raise
        finally:
            metrics.observe_request(_route(scope, status), scope["method"], status, time.perf_counter() - began)


def _route(scope, status: int) -> str:
    """The template of the route that took the request: a closed set, whatever was asked for."""
    path = getattr(scope.get("route"), "path", None)
    if path:
        return path
    if scope.get("endpoint") is not None:
        return FILES
    return NO_ROUTE if status in {404, 405} else REFUSED
