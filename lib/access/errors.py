"""Why somebody is not admitted."""

from __future__ import annotations

from monailabel_app.errors import AnomalyAppError


class NotSignedIn(AnomalyAppError):
    """Nothing was shown that says who asks, where that is needed."""

    status = 401


class BadCredentials(NotSignedIn):
    """A token, password or account was shown that this server does not take."""


class WrongRole(AnomalyAppError):
    """Who asks is known and may not do this."""

    status = 403


class TooManyAttempts(AnomalyAppError):
    """Wrong tokens or passwords came too often from one address; ``retry_after`` (s) goes into the answer."""

    status = 429

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class LoginUnreachable(AnomalyAppError):
    """Keycloak does not answer, or not as one."""

    status = 503
