"""Why somebody is not admitted."""

from __future__ import annotations

from lib.errors import Later
from monailabel_app.errors import AnomalyAppError


class NotSignedIn(AnomalyAppError):
    """Nothing was shown that says who asks, where that is needed."""

    status = 401


class BadCredentials(NotSignedIn):
    """A token, password or account was shown that this server does not take."""


class WrongRole(AnomalyAppError):
    """Who asks is known and may not do this."""

    status = 403


class TooManyAttempts(Later):
    """Wrong tokens or passwords came too often from one address."""

    status = 429


class LoginUnreachable(AnomalyAppError):
    """Keycloak does not answer, or not as one."""

    status = 503
