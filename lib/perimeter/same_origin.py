"""Pages of other sites cannot use the browser of somebody who may use this server (CSRF, cross-site reads).

Browsers say in headers that a page cannot forge where a request comes from (Fetch Metadata, ``Origin``); other clients
(Slicer, the Python client, curl) send neither and pass. This guards a server at the loopback address, which asks
nobody for a token, and sessions by cookie.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers

from lib.errors import NotAllowed, answer_error
from lib.perimeter.origins import is_allowed

logger = logging.getLogger(__name__)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# A link on another site may be followed, also to a picture of its own; a page of ours in its frame may not be.
_EMBEDDED = frozenset({"embed", "frame", "iframe", "object"})


class SameOrigin:
    """ASGI callable: 403 for requests that a page of another origin makes."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] != "http" or permitted(scope["method"], Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        logger.warning("a request of a page of another origin was refused")
        error = NotAllowed(
            "a page of another origin made this request: open the viewer at this server's own address, or start the "
            "server with the page's origin: --conf cors_origins http://HOST:PORT"
        )
        await answer_error(scope, receive, send, error)


def permitted(method: str, headers: Headers) -> bool:
    """Whether the request is of a page of this server, of a named origin, or of no page at all."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "")
    if site in {"same-origin", "none"}:
        # Only the browser writes it, and it knows the address better than a server behind a proxy.
        return True
    if origin is not None and is_allowed(origin, headers.get("host", "")):
        return True
    if method not in _SAFE:
        return origin is None and not site
    if not site:
        # A browser of before 2023; without CORS's permission its page cannot read the answer.
        return True
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") not in _EMBEDDED
    return followed and method == "GET"
