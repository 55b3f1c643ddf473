"""Headers that MONAI Label's client repeats from its request before, put right.

With a token it keeps one set of headers for all of its requests, so that the length and the kind of the last body come
again with requests that have none (GET, DELETE), and with sessions, whose parts have another boundary: without this
layer a session or a removal after an upload fails, and only for those who sign in.

It waits for the beginning of a session's body, and so has its place behind ``lib.access.gate``: who sends none, and is
nobody, is to be refused at once, not to keep a connection for as long as they like.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from lib.perimeter.address import below_api

_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
# What its two ways to send a body leave behind; its third, for sessions, does not set the header anew.
_LEFT = re.compile(r"application/json|text/plain|multipart/form-data; boundary=-+lImIt_of_THE_fIle_eW_\$")
_FIRST_LINE = re.compile(rb"--([0-9a-zA-Z'()+_,./:=?-]{1,70})\r\n")


class RepeatedHeaders:
    """ASGI callable: requests go on with the headers that fit them."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Leave out a length without a body; name the boundary that the body has."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] in _WITHOUT_BODY:
            if "content-length" in headers and "transfer-encoding" not in headers:
                scope = _with(scope, b"content-length", None)
        elif _is_session(scope) and _LEFT.fullmatch(headers.get("content-type", "")):
            first = await receive()
            found = _FIRST_LINE.match(first.get("body", b"")[:80])
            if found and not headers["content-type"].endswith(f"boundary={found[1].decode()}"):
                scope = _with(scope, b"content-type", b"multipart/form-data; boundary=" + found[1])
            receive = _again(first, receive)
        await self.app(scope, receive, send)


def _is_session(scope) -> bool:
    return scope["method"] == "PUT" and below_api(scope).rstrip("/") == "/session"


def _with(scope, name: bytes, value: bytes | None):
    kept = [(key, held) for key, held in scope["headers"] if key != name]
    return {**scope, "headers": kept if value is None else [*kept, (name, value)]}


def _again(first, receive):
    """``receive`` that gives the message once more that was taken from it."""
    waiting = [first]

    async def receiving():
        return waiting.pop() if waiting else await receive()

    return receiving
