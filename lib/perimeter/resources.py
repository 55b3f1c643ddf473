"""What one client may hold of this process: connections that ask nothing, open files, memory of a form.

The stock command starts uvicorn, which waits for the head of a request as long as the connection lasts, also from
clients without a token; a thousand silent connections are all that a process may have open by default.
"""

from __future__ import annotations

import importlib
import logging
from contextlib import suppress
from typing import Any

from starlette.formparsers import MultiPartParser
from starlette.requests import Request

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None

logger = logging.getLogger(__name__)

# A head comes at once; an answer that was given before the body was there (401, 413) is read meanwhile.
WAIT_SECONDS, LOOK_SECONDS = 30.0, 5.0
MOST_OPEN = 65536
# Of a multipart form: fields, which are kept in memory (1 MiB each), and what of each file is.
MOST_FIELDS, IN_MEMORY = 32, 2**18
_PROTOCOLS = ("uvicorn.protocols.http.h11_impl.H11Protocol", "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol")
_MARK = "_anomaly_watched"


def prepare() -> None:
    """Set the limits of this process; again changes nothing."""
    raise_open_files()
    limit_forms()
    for name in _PROTOCOLS:
        module, _, kind = name.rpartition(".")
        with suppress(ImportError, AttributeError):
            watch(getattr(importlib.import_module(module), kind))


def raise_open_files() -> None:
    """As many open files as this account may have: the default is for programs with few."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_forms() -> None:
    """The framework keeps a thousand fields and files of 1 MiB each in memory, of every request at once."""
    defaults = Request.form.__kwdefaults__ or {}
    if "max_fields" in defaults:
        defaults["max_fields"] = MOST_FIELDS
    if hasattr(MultiPartParser, "spool_max_size"):
        MultiPartParser.spool_max_size = IN_MEMORY


def watch(protocol: type) -> None:
    """Connections of a uvicorn protocol that ask nothing for WAIT_SECONDS are closed."""
    if getattr(protocol, _MARK, False):
        return
    made = protocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        _look(self, None, self.loop.time())

    protocol.connection_made = connection_made
    setattr(protocol, _MARK, True)


def _look(connection: Any, seen: Any, since: float) -> None:
    """seen, since: the request (its cycle) and the time at which the connection began to ask nothing."""
    transport, loop, cycle = connection.transport, connection.loop, connection.cycle
    if transport.is_closing():
        return
    now = loop.time()
    if cycle is not seen or (cycle is not None and not cycle.response_complete):
        since = now
    elif now - since >= max(WAIT_SECONDS, connection.timeout_keep_alive + LOOK_SECONDS):
        transport.abort()
        return
    loop.call_later(LOOK_SECONDS, _look, connection, cycle, since)
