"""Who makes the request that is being served.

Set once per request, before anything else of it is looked at; endpoints in threads see it too, because the event loop
hands its context to them. Work that goes on in threads of its own takes it along when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

READER, ADMIN, MONITOR = "reader", "admin", "monitor"
ROLES = (READER, ADMIN, MONITOR)
# Ways of being known by a name of one's own (``Principal.how``).
BY_NAME = frozenset({"token", "cookie", "keycloak"})


@dataclass(frozen=True)
class Principal:
    """name: what the token or account is called, never a secret. role: one of ROLES.

    how: ``token``, ``cookie``, ``keycloak``, ``local`` (this machine, where no token is asked for), ``internal`` (the
    server itself) or ``command`` (the command line).
    """

    name: str
    role: str
    how: str


SERVER = Principal("server", ADMIN, "internal")
_current: ContextVar[Principal] = ContextVar("principal", default=SERVER)


def current() -> Principal:
    """Whose request this is; the server itself where there is none."""
    return _current.get()


@contextmanager
def acting(principal: Principal) -> Iterator[None]:
    """Within it ``current`` is ``principal``."""
    token = _current.set(principal)
    try:
        yield
    finally:
        _current.reset(token)
