"""Cross-origin requests (CORS): exactly the named origins, and a viewer at the other name of this machine."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from lib.perimeter.origins import is_allowed, named_origins

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT")


class ExactCors:
    """ASGI callable instead of MONAI Label's own, which answers every origin with permission.

    An origin without permission is given no header that would let its page read an answer, and its preflight 400.
    """

    def __init__(self, app):
        self.app = app
        # A name that is none is told at the start, not at the first request.
        named_origins()

    async def __call__(self, scope, receive, send) -> None:
        """Add the headers of CORS, or answer a preflight."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        origin = headers.get("origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        allowed = (origin,) if is_allowed(origin, headers.get("host", "")) else ()
        # The library's one adds the permission to credentials for everybody, where it is of no use alone.
        layer = CORSMiddleware(
            self.app, allow_origins=allowed, allow_credentials=bool(allowed), allow_methods=_METHODS, allow_headers="*"
        )
        await layer(scope, receive, send)
