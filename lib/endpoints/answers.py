"""What the addresses under ``/anomaly/`` share: JSON that is not kept by browsers, and strictly read requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.config import settings

from lib.endpoints.infer import read_params
from lib.errors import InvalidRequest
from monailabel_app.types import to_json

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# The settings of an analysis that an address can name, as ``POST /infer`` has them.
SETTINGS = (
    "operating_point", "threshold", "score", "smoothing", "min_lesion_volume", "calibration", "uncertainty", "seed",
    "input_gate",
)  # fmt: skip


def answer(value: Any, status: int = 200) -> JSONResponse:
    """``value`` as JSON without NaN, which no cache may keep: it is about patients."""
    return JSONResponse(to_json(value), status_code=status, headers=NO_STORE)


def address(*parts: str, query: Mapping[str, Any] | None = None) -> str:
    """An address of this server under ``/anomaly/``, every part quoted; what is None is left out of the query."""
    path = "/".join(quote(part, safe="") for part in parts)
    said = urlencode({key: value for key, value in (query or {}).items() if value is not None})
    return f"{settings.MONAI_LABEL_API_STR}/anomaly/{path}{'?' + said if said else ''}"


def read_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query without what is empty. Raises InvalidRequest naming a parameter that there is not."""
    given = dict(request.query_params)
    unknown = sorted(key[:40] for key in given.keys() - set(known))
    if unknown:
        raise InvalidRequest(
            f"expected parameters out of {', '.join(sorted(known))}; got {', '.join(map(repr, unknown))}"
        )
    return {key: value.strip() for key, value in given.items() if value.strip()}


def check_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an analysis. Raises InvalidRequest naming a setting that there is not."""
    unknown = sorted(str(key)[:40] for key in given.keys() - set(SETTINGS))
    if unknown:
        raise InvalidRequest(f"expected settings out of {', '.join(SETTINGS)}; got {', '.join(map(repr, unknown))}")
    return {str(key): value for key, value in given.items() if value is not None and value != ""}


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body; an empty one for none. Raises InvalidRequest.

    How long it may be says ``lib.perimeter.body_limit``, for every address.
    """
    try:
        return read_params((await request.body()).decode("utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("expected a JSON object as UTF-8 text, got something else") from error
