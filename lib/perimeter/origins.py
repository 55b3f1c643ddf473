"""Which web origins (RFC 6454) a request may come from: this server's own, and those that the settings name.

They are named by ``--conf cors_origins http://h:3000,https://other``. MONAI Label's own setting
``MONAI_LABEL_CORS_ORIGINS`` is read, too, where something else than ``start_server`` has started the server (that
command cannot write it into its log and ends with a TypeError). MONAI Label takes an empty one as "everybody", and
writes a named one with a slash at its end, which no browser sends. Here empty means nobody, and names are compared as
browsers write them.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

from monailabel.config import settings

from lib.errors import InvalidRequest

_PORTS = {"http": 80, "https": 443}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def normalised(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of ``http://host:port``; None for what is no such origin (``null``, with a path, ...)."""
    try:
        parts = urlsplit(origin.strip())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in {"", "/"} or parts.username is not None:
        return None
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme]


def named_origins() -> frozenset[tuple[str, str, int]]:
    """The origins of ``--conf cors_origins`` and ``MONAI_LABEL_CORS_ORIGINS``, normalised.

    Raises InvalidRequest naming one that is none, such as ``*``.
    """
    conf = str((settings.MONAI_LABEL_APP_CONF or {}).get("cors_origins") or "")
    given = [*(text.strip() for text in conf.split(",") if text.strip()), *map(str, settings.MONAI_LABEL_CORS_ORIGINS)]
    return _all_normalised(tuple(given))


@lru_cache(maxsize=8)
def _all_normalised(given: tuple[str, ...]) -> frozenset[tuple[str, str, int]]:
    found = {text: normalised(text) for text in given}
    for text, origin in found.items():
        if origin is None:
            raise InvalidRequest(
                f"expected origins such as http://host:3000 in --conf cors_origins, got {text[:60]!r}: each has to be "
                "named"
            )
    return frozenset(found.values())


def is_own(origin: str, host: str, scheme: str = "http") -> bool:
    """Whether ``origin`` is the server that the header ``Host`` names.

    A proxy that ends TLS hands the request on as http, so the scheme is not compared. ``localhost`` and ``127.0.0.1``
    at one port are one server to its user (a viewer opened at one of them may be told the other).
    """
    found = normalised(origin)
    if found is None or not host:
        return False
    itself = normalised(f"{found[0]}://{host}")
    if itself is None:
        return False
    return found == itself or (found[1] in _LOOPBACK and itself[1] in _LOOPBACK and found[2] == itself[2])


def is_allowed(origin: str, host: str) -> bool:
    """Whether pages of ``origin`` may use this server: its own, or named in the settings."""
    return is_own(origin, host) or normalised(origin) in named_origins()


def twins(host: str, scheme: str) -> tuple[str, ...]:
    """The other names of a loopback ``host``, as origins; none for any other host."""
    itself = normalised(f"{scheme}://{host}") if host else None
    if itself is None or itself[1] not in _LOOPBACK:
        return ()
    return tuple(f"{scheme}://{name}:{itself[2]}" for name in ("localhost", "127.0.0.1") if name != itself[1])
