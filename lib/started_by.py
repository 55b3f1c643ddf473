"""Who started a background task, for the process that does it: what it notes is noted in that person's name.

MONAI Label hands a process its request and nothing else. So whoever is being served when a task is put into its line is
written into the request there, over whatever a client may have put in that place, and is believed by a process that
serves nobody only: a request that this server does itself is its own asker's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from dataclasses import asdict
from typing import Any

from lib.access.principal import ROLES, SERVER, Principal, acting, current

KEY = "started_by"


def mark(request: MutableMapping[str, Any]) -> None:
    """Write down who asks."""
    request[KEY] = asdict(current())


def in_name_of_asker(work: Callable[..., Any]) -> Callable[..., Any]:
    """Of a method of the app that does a task: its request comes without the mark, and it works in that name."""

    @functools.wraps(work)
    def working(app: Any, request: MutableMapping[str, Any], *given: Any, **options: Any) -> Any:
        asker = _asker(request.pop(KEY, None))
        with acting(asker if asker is not None and current() is SERVER else current()):
            return work(app, request, *given, **options)

    return working


def _asker(said: Any) -> Principal | None:
    if not isinstance(said, dict) or set(said) != {"name", "role", "how"}:
        return None
    if not all(isinstance(value, str) for value in said.values()) or said["role"] not in ROLES:
        return None
    return Principal(**said)
