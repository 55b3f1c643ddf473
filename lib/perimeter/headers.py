"""Headers that tell a browser to take nothing from elsewhere, show nothing in foreign frames and guess no types.

What an answer says itself is left as it is: pages that need more (``/anomaly/``, reports) have policies of their own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

import monailabel.endpoints
from starlette.datastructures import Headers, MutableHeaders

from lib.perimeter.address import below_api
from lib.perimeter.origins import named_origins, twins

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Pages of named origins read answers by CORS, which this does not touch.
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Of data, pictures and archives nothing is to be run or loaded, should a browser show one as a page.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
# Thirty days: the name of the machine may serve other things without TLS.
_HSTS = "max-age=2592000"
_VIEWER = Path(monailabel.endpoints.__file__).resolve().parent / "static" / "ohif"
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class SecurityHeaders:
    """ASGI callable, outermost: every answer has the headers, errors of the framework among them."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on and complete the head of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def completing_send(message):
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                _complete(MutableHeaders(scope=message), scope)
            await send(message)

        await self.app(scope, receive, completing_send)


def _complete(said: MutableHeaders, scope) -> None:
    for name, value in _ALWAYS.items():
        said.setdefault(name, value)
    if "content-security-policy" not in said:
        said["Content-Security-Policy"] = policy_for(scope)
    if scope.get("scheme") == "https":
        said.setdefault("Strict-Transport-Security", _HSTS)


def policy_for(scope) -> str:
    """The policy of an answer that has none: the OHIF viewer's for its files, else one that allows nothing."""
    if not below_api(scope).startswith(("/ohif", "/static/ohif")):
        return POLICY
    host = Headers(scope=scope).get("host", "")
    others = [*twins(host, scope.get("scheme", "http")), *(f"{s}://{h}:{p}" for s, h, p in sorted(named_origins()))]
    return viewer_policy(tuple(others))


@lru_cache(maxsize=64)
def viewer_policy(others: tuple[str, ...] = ()) -> str:
    """What MONAI Label's build of OHIF needs: its own files, its two inline scripts by their hash, WebAssembly, workers
    made of text, styles that its components write, and text run as a script (its reader of segmentations builds array
    types so). ``others``: origins of servers its panel may talk to.
    """
    page = (_VIEWER / "index.html").read_bytes() if (_VIEWER / "index.html").is_file() else b""
    hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in _INLINE.findall(page)]
    scripts = " ".join(["'self'", *(f"'sha256-{value}'" for value in hashes), "'unsafe-eval'"])
    servers = " ".join(["'self'", *others])
    return (
        f"default-src 'self'; script-src {scripts}; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; font-src 'self' data:; connect-src {servers} data: blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    )
