"""Whether somebody still waits for an answer: nobody is to stand in line for a client that has gone.

A thread cannot see that its client has closed the connection; the event loop can, and tells it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import RunVar
from starlette.requests import Request

from lib.line import WAITING
from monailabel_app.errors import Cancelled

T = TypeVar("T")
_ASK_SECONDS = 0.5
# Threads for those who wait in line, so that they leave the framework's own (40) to all others. More than may wait:
# whoever finds the line full is to be told so at once.
_THREADS = 64
_GONE = "the client closed its connection before the analysis was done"
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("threads for those who wait in line")


class Caller:
    """The client of one request."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def asking(self, tell: Callable[[str, float], None], kept: bool) -> Callable[[str, float], None]:
        """``tell``, which raises Cancelled as soon as the client has gone.

        kept: what comes out is kept for whoever asks next; then only the waiting ends, and not what has begun.
        """

        def told(stage: str, share: float) -> None:
            if self._gone.is_set() and (stage == WAITING or not kept):
                raise Cancelled(_GONE)
            tell(stage, share)

        return told

    async def served(self, request: Request, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``work`` in a thread, while the client is watched; its result and errors. The body was read before."""
        watch = asyncio.create_task(self._watch(request))
        try:
            return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=_threads())
        finally:
            watch.cancel()

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_ASK_SECONDS)
        self._gone.set()


def _threads() -> anyio.CapacityLimiter:
    """Made inside the event loop, to which it belongs."""
    try:
        return _limiter.get()
    except LookupError:
        made = anyio.CapacityLimiter(_THREADS)
        _limiter.set(made)
        return made
