"""Around every request: who makes it, and may they?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse

from lib import audit
from lib.access import users
from lib.access.authenticate import ANONYMOUS, OPEN, Access, Who, client_of
from lib.access.errors import BadCredentials, NotSignedIn, TooManyAttempts, WrongRole
from lib.access.policy import PUBLIC, role_needed, rule_of
from lib.access.principal import Principal, acting
from lib.errors import answer_error
from monailabel_app.errors import AnomalyAppError

logger = logging.getLogger(__name__)

LOGIN = "/anomaly/login"
# Not Basic: a browser would ask in a window of its own, before the page can.
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="anomaly"', "Cache-Control": "no-store"}


class Gate:
    """ASGI callable: 401 for who is not made out, 403 for who may not, 429 for who guesses; else the request goes on.

    The principal is in ``scope["state"]["principal"]`` and in ``lib.access.principal.current``, this server's Access
    in ``scope["state"]["access"]``.
    """

    def __init__(self, app: Callable):
        self.app = app
        self.access = Access(settings.MONAI_LABEL_APP_DIR or ".", settings.MONAI_LABEL_APP_CONF or {})
        users.take_over()
        if self.access.mode == OPEN:
            logger.warning(
                "THIS SERVER ASKS NOBODY WHO THEY ARE (--conf auth open): whoever reaches it may read, change and "
                "delete everything"
            )

    async def __call__(self, scope, receive, send) -> None:
        """Make out who asks, and pass the request on or answer why not."""
        if scope["type"] == "websocket":
            # There are none here; what there is not needs no exception.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        needed = role_needed(scope["method"], path)
        try:
            who = await self._admitted(scope, needed)
        except AnomalyAppError as error:
            await self._refuse(scope, receive, send, path, error)
            return
        state = scope.setdefault("state", {})
        state["principal"], state["access"] = who.principal, self.access
        with acting(who.principal), users.serving(_user(who)):
            await self.app(scope, receive, send)

    async def _admitted(self, scope, needed: frozenset[str]) -> Who:
        if needed is PUBLIC:
            try:
                return await self.access.identify(scope) or Who(ANONYMOUS)
            except AnomalyAppError:
                return Who(ANONYMOUS)
        try:
            who = await self.access.identify(scope)
        except BadCredentials:
            wait = self.access.failures.failed(client_of(scope))
            if wait:
                raise TooManyAttempts(
                    f"too many wrong tokens came from this address: wait {wait:.0f} s", wait
                ) from None
            await _note(scope, ANONYMOUS, "credentials")
            raise
        if who is None:
            raise NotSignedIn(self._how_to_sign_in())
        if who.principal.role not in needed:
            if not self.access.noted.failed(who.principal.name):
                await _note(scope, who.principal, "role")
            raise WrongRole(
                f"this needs the role {' or '.join(sorted(needed))}; {who.principal.name} has the role "
                f"{who.principal.role}"
            )
        return who

    def _how_to_sign_in(self) -> str:
        if self.access.keycloak is not None or self.access.store.tokens():
            return (
                "this server asks for a token: send it as Authorization: Bearer TOKEN, or sign in at "
                f"{settings.MONAI_LABEL_API_STR}{LOGIN}"
            )
        return (
            "this server has no tokens yet and so answers only clients on its own machine, asked for as localhost and "
            "without a proxy in between. On it, make a token: python main.py tokens create --name NAME --role reader"
        )

    async def _refuse(self, scope, receive, send, path: str, error: AnomalyAppError) -> None:
        headers = Headers(scope=scope)
        if error.status == 401 and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            await RedirectResponse(login_address(scope, path), 303, {"Cache-Control": "no-store"})(scope, receive, send)
            return
        extra = _CHALLENGE if error.status == 401 else {"Cache-Control": "no-store"}
        await answer_error(scope, receive, send, error, extra)


def login_address(scope: Mapping[str, Any], path: str) -> str:
    """The login page that leads back to where the request was for."""
    root = (scope.get("root_path") or "").rstrip("/")
    query = scope.get("query_string", b"").decode("latin-1")
    back = quote(root + path, safe="/") + (f"?{query}" if query else "")
    return f"{root}{settings.MONAI_LABEL_API_STR}{LOGIN}?next={quote(back, safe='')}"


def _user(who: Who) -> Any:
    return None if who.principal is ANONYMOUS else users.user_of(who.principal, who.roles)


async def _note(scope: Mapping[str, Any], principal: Principal, reason: str) -> None:
    path = scope["path"].removeprefix(scope.get("root_path") or "")
    rule = rule_of(scope["method"], path)
    # The table's words, in which there is no id.
    words = "_".join(part for part in rule[1].replace("/", " ").split() if "{" not in part) if rule else "other"
    with acting(principal):
        await anyio.to_thread.run_sync(lambda: audit.note("access_refused", "refused", reason=reason, endpoint=words))
