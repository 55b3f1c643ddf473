"""A name and a token, or an account and its password, become a session or a token for a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

from lib import audit
from lib.access.authenticate import ANONYMOUS, Access, Who, client_of, in_thread, who_of
from lib.access.errors import BadCredentials, TooManyAttempts
from lib.access.principal import Principal, acting

_LONGEST_NAME = 255
_WRONG = "no token of that name and text is valid here; a name and a token of this server are needed"
_WRONG_ACCOUNT = "neither a token nor an account of that name and password is valid here"


@dataclass(frozen=True)
class SignedIn:
    """Who; what a client sends as Bearer from now on; a browser's cookie and the seconds that it lasts."""

    who: Who
    access_token: str
    cookie: str
    seconds: int


async def sign_in(access: Access, scope: Mapping[str, Any], name: str, secret: str) -> SignedIn:
    """Look at a token first, then at Keycloak where it is on; success and failure are noted in the audit log.

    An empty name is right for any token. Raises BadCredentials, TooManyAttempts, TokensUnreadable, WrongRole,
    LoginUnreachable.
    """
    name, password, secret = name.strip(), secret, secret.strip()
    token = access.token_of(name, secret) if name else access.store.find(secret)
    if token is not None:
        expires = token.expires.timestamp() if token.expires else None
        cookie, seconds = access.sessions.for_token(token.name, token.sha256, expires)
        who = Who(Principal(token.name, token.role, "token"))
        await _note(who.principal, "ok")
        return SignedIn(who, secret, cookie, seconds)
    client = client_of(scope)
    # As Keycloak compares names, and no longer than any account's: whatever is guessed is remembered for a while.
    guess = (client, name.casefold()[:_LONGEST_NAME])
    wait = max(access.failures.waiting(client), access.passwords.waiting(guess))
    if wait:
        raise TooManyAttempts(f"too many failed attempts: wait {wait:.0f} s and try again", wait)
    # Counted before the answer is there, so that many guesses at once are many.
    access.passwords.failed(guess)
    try:
        if access.keycloak is None or not name:
            raise BadCredentials(_WRONG)
        try:
            said = await in_thread(access.keycloak.sign_in, name, password)
        except BadCredentials as error:
            raise BadCredentials(_WRONG_ACCOUNT) from error
        account = await in_thread(access.keycloak.account, said["access_token"])
    except BadCredentials:
        access.failures.failed(client)
        await _note(ANONYMOUS, "refused")
        raise
    access.passwords.forgive(guess)
    who = who_of(account)
    cookie, seconds = access.sessions.for_account(account.name, account.roles)
    await _note(who.principal, "ok")
    return SignedIn(who, said["access_token"], cookie, seconds)


async def _note(principal: Principal, outcome: str) -> None:
    with acting(principal):
        await anyio.to_thread.run_sync(lambda: audit.note("login", outcome, auth=principal.how))
