"""``/anomaly/``: the page for readers, built from ``lib/page/src`` and served from ``lib/page/dist``.

Where tokens are asked for, a browser without a session is sent to the login page first (``lib.access.gate``). The
policy lets a browser take scripts, styles and data from this server only. No text and no WebAssembly is run.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance

from lib.access.principal import current
from lib.datastore import IMAGE_EXTENSIONS, AnomalyLocalDatastore
from monailabel_app import __version__

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Page"])

DIST = Path(__file__).resolve().parent.parent / "page" / "dist"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
# Names of files in assets/ carry a hash of the content: what is under such a name never changes.
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_PACKED = {".html", ".js", ".css", ".svg", ".txt", ".json", ".wasm"}
_PACKING = threading.Lock()


@dataclass(frozen=True)
class PageFile:
    """A built file: its bytes, the same as gzip (None where that gains nothing), media type and ETag."""

    content: bytes
    packed: bytes | None
    media_type: str
    etag: str


@router.get("/anomaly", include_in_schema=False)
def without_slash() -> RedirectResponse:
    """The page's addresses are relative to its folder."""
    return RedirectResponse("anomaly/", status_code=308)


@router.get("/anomaly/page.json", summary="What the page needs to know about this server")
def about() -> dict[str, Any]:
    """Version, kind of datastore, whether it takes uploads and of which files, and who is signed in (None: nobody)."""
    local = isinstance(app_instance().datastore(), AnomalyLocalDatastore)
    return {
        "version": __version__,
        "datastore": "folder" if local else "dicomweb",
        "uploads": local and not settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        "extensions": list(IMAGE_EXTENSIONS),
        "user": signed_in(),
    }


def signed_in() -> dict[str, str] | None:
    """Name and role of whoever signed in here; None where that was not asked for."""
    who = current()
    return {"name": who.name, "role": who.role} if who.how in {"token", "cookie", "keycloak"} else None


@router.api_route("/anomaly/", methods=["GET", "HEAD"], include_in_schema=False)
def start(request: Request) -> Response:
    """The page."""
    return answer(request, "index.html", _ASK_AGAIN)


@router.api_route("/anomaly/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
def asset(request: Request, name: str) -> Response:
    """A script, style or picture of the page."""
    return answer(request, f"assets/{name}", _FOREVER)


@router.api_route("/anomaly/THIRD-PARTY-LICENSES.txt", methods=["GET", "HEAD"], include_in_schema=False)
def licences(request: Request) -> Response:
    """The licences of what the page is built with."""
    return answer(request, "THIRD-PARTY-LICENSES.txt", _ASK_AGAIN)


def answer(request: Request, name: str, cache: str) -> Response:
    """The file ``name`` of the build, or 304 when the browser has it. Raises HTTPException 404."""
    found = DIST / name
    # Only what the build wrote: a name from the address is compared, never followed.
    if name not in built() or not found.is_file():
        raise HTTPException(404, "the page has no such file; build it with make page if it was never built")
    file = page_file(found, found.stat().st_mtime_ns)
    headers = {**HEADERS, "Cache-Control": cache, "ETag": file.etag, "Vary": "Accept-Encoding"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = file.packed, "gzip"
    headers["Content-Length"] = str(len(content))
    if request.method == "HEAD":
        content = b""
    return Response(content, media_type=file.media_type, headers=headers)


def built() -> set[str]:
    """Names of the built files relative to ``dist``; empty where the page was never built."""
    return {path.relative_to(DIST).as_posix() for path in DIST.rglob("*") if path.is_file()}


def page_file(path: Path, changed: int) -> PageFile:
    """The file, read and packed once. ``changed`` is part of the key, so that a new build is noticed."""
    with _PACKING:
        return _page_file(path, changed)


@lru_cache(maxsize=64)
def _page_file(path: Path, changed: int) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    packed = gzip.compress(content, 9, mtime=0) if path.suffix in _PACKED else None
    return PageFile(content, packed if packed and len(packed) < len(content) else None, media_type, etag)
