"""Who asks, as MONAI Label's own endpoints know it: its ``get_current_user`` gets the user that was made out here.

That function asks ``from_token`` of its module, which fails with every current PyJWT and knows nothing of sessions;
this one takes its place. It counts for endpoints of MONAI Label and of this app alike, however they were routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jwt
from monailabel.config import settings
from monailabel.endpoints.user import auth

from lib.access.keycloak import every_role
from lib.access.principal import ADMIN, READER, Principal

_user: ContextVar[auth.User | None] = ContextVar("user", default=None)


def user_of(principal: Principal, roles: tuple[str, ...] | None = None) -> auth.User:
    """roles: those of a Keycloak account; else what the principal's role comes to."""
    everything = every_role()
    if principal.role == ADMIN:
        given = everything
    elif roles is not None:
        given = roles
    else:
        given = everything[1:] if principal.role == READER else everything[-1:]
    return auth.User(username=principal.name, roles=list(given))


@contextmanager
def serving(user: auth.User | None) -> Iterator[None]:
    """Within it MONAI Label's endpoints are asked by ``user``."""
    token = _user.set(user)
    try:
        yield
    finally:
        _user.reset(token)


def take_over() -> None:
    """Put ``from_token`` in its place; a request without the header (one with a cookie) is no error by itself."""
    auth.from_token = current_user
    auth.oauth2_scheme.auto_error = False


def current_user(token: str | None = None) -> auth.User:
    """The user of the request that is being served; the token was looked at before. Raises InvalidTokenError."""
    user = _user.get()
    if user is not None:
        return user
    if settings.MONAI_LABEL_AUTH_ENABLE:
        raise jwt.InvalidTokenError("nobody is signed in")
    return auth.DEFAULT_USER
