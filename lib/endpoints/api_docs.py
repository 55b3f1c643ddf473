"""``/`` and ``/docs``: the addresses of this server to read and try, without anything from the internet.

MONAI Label's own page loads its scripts from there: on a machine without internet it is blank, and on others a foreign
script has the reader's rights.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse
from monailabel.config import settings

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Others"])

FOLDER = Path(__file__).resolve().parent.parent / "api_docs"
_FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "start.css": "text/css; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
    "NOTICE": "text/plain; charset=utf-8",
    "swagger-ui-bundle.js.LICENSE.txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


@router.get("/", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
def page() -> FileResponse:
    """The start page."""
    return FileResponse(
        FOLDER / "index.html", media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY}
    )


@router.get("/static/api/{name}", include_in_schema=False)
def file(name: str) -> FileResponse:
    """One of the page's files, by its name."""
    if name not in _FILES:
        raise HTTPException(404, "the page has no such file")
    return FileResponse(FOLDER / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})
