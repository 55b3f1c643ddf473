"""Who makes a request: a token, a session, a Keycloak account, somebody on this machine, or the server itself."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from monailabel.config import settings
from starlette.requests import cookie_parser

from lib.access import itself
from lib.access.errors import BadCredentials
from lib.access.keycloak import Account, Keycloak
from lib.access.locality import is_local
from lib.access.principal import ADMIN, SERVER, Principal
from lib.access.sessions import COOKIE, HOURS, Sessions
from lib.access.throttle import Throttle
from lib.errors import InvalidRequest
from monailabel_app.access.tokens import Token, TokenStore, default_file
from monailabel_app.errors import AnomalyAppError

logger = logging.getLogger(__name__)

AUTO, TOKEN, OPEN = "auto", "token", "open"
MODES = (AUTO, TOKEN, OPEN)
ANONYMOUS = Principal("anonymous", "none", "none")
# Questions to Keycloak at a time; the rest of the server does not wait for it.
_AT_ONCE = 4
_LONGEST = 16384
_threads: RunVar[anyio.CapacityLimiter] = RunVar("login_threads")


@dataclass(frozen=True)
class Who:
    """A principal, and of a Keycloak account the roles that its realm gives it."""

    principal: Principal
    roles: tuple[str, ...] | None = None


_EVERYBODY = Who(Principal("open", ADMIN, "open"))


class Access:
    """What one server knows about who may use it: tokens, sessions, failures, and whom it asks.

    conf: ``auth`` (auto, token or open), ``tokens`` (the file), ``session_hours``. Raises InvalidRequest for others.
    """

    def __init__(self, app_dir: str | Path, conf: Mapping[str, Any]):
        self.mode = str(conf.get("auth") or AUTO).strip().lower()
        if self.mode not in MODES:
            raise InvalidRequest(f"expected --conf auth to be one of {', '.join(MODES)}, got {self.mode[:40]!r}")
        self.store = TokenStore(default_file(Path(app_dir), conf))
        self.sessions = Sessions(Path(app_dir) / "model" / "session.key", _hours(conf))
        self.keycloak = Keycloak() if settings.MONAI_LABEL_AUTH_ENABLE else None
        # Wrong tokens by address; wrong passwords by address and name; refusals that are noted, by whom.
        self.failures, self.passwords, self.noted = Throttle(), Throttle(10, 300.0), Throttle()
        itself.prepare(self.sessions.key)

    def asks_everybody(self) -> bool:
        """Whether a token is demanded from clients on this machine, too. Raises TokensUnreadable.

        An expired token counts: the server is not to open by itself when the last one's time is over.
        """
        if self.mode == OPEN:
            return False
        return self.mode == TOKEN or self.keycloak is not None or bool(self.store.tokens())

    async def identify(self, scope: Mapping[str, Any]) -> Who | None:
        """Who makes the request; None where nobody can be made out.

        Raises BadCredentials for what was shown and is not right, TokensUnreadable, WrongRole, LoginUnreachable.
        """
        if self.mode == OPEN:
            # A name for the audit log, if there is one; nobody is refused for what they show.
            with suppress(AnomalyAppError):
                if shown := await self._shown(scope):
                    return Who(Principal(shown.principal.name, ADMIN, "open"))
            return _EVERYBODY
        who = await self._shown(scope)
        if who is None and not self.asks_everybody() and is_local(scope):
            return Who(Principal("local", ADMIN, "local"))
        return who

    async def _shown(self, scope: Mapping[str, Any]) -> Who | None:
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        return await self._by_header(headers) if headers else self._by_cookie(scope)

    async def _by_header(self, headers: list[bytes]) -> Who | None:
        scheme, _, value = headers[0].decode("latin-1").partition(" ")
        value = value.strip()
        if len(headers) > 1 or not value or len(value) > _LONGEST:
            raise BadCredentials("expected one header Authorization with a token, got something else")
        if scheme.lower() == "bearer":
            return await self.by_secret(value)
        if scheme.lower() == "basic":
            name, secret = _basic(value)
            token = self.token_of(name, secret)
            if token is not None:
                return Who(Principal(token.name, token.role, "token"))
            raise BadCredentials("the name and token are none of this server's")
        raise BadCredentials("expected Authorization: Bearer TOKEN (or Basic with a token's name and the token)")

    async def by_secret(self, secret: str) -> Who:
        """Whose token or Keycloak access token this is. Raises as ``identify``."""
        if itself.is_itself(secret):
            return Who(SERVER)
        token = self.store.find(secret)
        if token is not None:
            return Who(Principal(token.name, token.role, "token"))
        if self.keycloak is not None and secret.count(".") == 2:
            account = await in_thread(self.keycloak.account, secret)
            return who_of(account)
        raise BadCredentials("the token is unknown, expired or revoked")

    def token_of(self, name: str, secret: str) -> Token | None:
        """The token, if it has that name. Raises TokensUnreadable."""
        token = self.store.find(secret)
        return token if token is not None and hmac.compare_digest(token.name.encode(), name.encode("utf-8")) else None

    def _by_cookie(self, scope: Mapping[str, Any]) -> Who | None:
        said = self.sessions.read(cookie) if (cookie := cookie_of(scope)) else None
        if said is None:
            return None
        if isinstance(said.get("token"), str):
            token = self.store.by_hash(said["token"])
            return None if token is None else Who(Principal(token.name, token.role, "cookie"))
        if self.keycloak is None or not isinstance(said.get("roles"), list):
            return None
        roles = tuple(map(str, said["roles"]))
        return who_of(self.keycloak.session(str(said["sub"]), roles))


def who_of(account: Account) -> Who:
    """A Keycloak account as principal; the same in a browser, where a token of its name is somebody else."""
    return Who(Principal(account.name, account.role, "keycloak"), account.roles)


def cookie_of(scope: Mapping[str, Any]) -> str:
    """The session's cookie of a request, or an empty text."""
    headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    return cookie_parser("; ".join(headers)).get(COOKIE, "") if headers else ""


def client_of(scope: Mapping[str, Any]) -> str:
    """The address that failures are counted by. Of IPv6 the network: one client has 2^64 addresses of it."""
    host = str((scope.get("client") or ("", 0))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return host


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Run a function that asks Keycloak, few at a time."""
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _threads.set(limiter)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)


def _basic(value: str) -> tuple[str, str]:
    try:
        name, colon, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except ValueError as error:
        raise BadCredentials("expected a name and a token in Authorization: Basic, got something else") from error
    if not colon:
        raise BadCredentials("expected a name and a token in Authorization: Basic, got something else")
    return name, secret


def _hours(conf: Mapping[str, Any]) -> float:
    text = str(conf.get("session_hours", HOURS))
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 168:
        raise InvalidRequest(f"expected --conf session_hours to be more than 0 and at most 168, got {text[:40]!r}")
    return hours
