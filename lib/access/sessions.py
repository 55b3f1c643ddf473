"""Sessions of browsers: a signed cookie that names a token of the file or an account, and is worth no more than that.

Of a token's session the role is looked up at every request, so that it ends with the token. A session of a Keycloak
account carries its roles and is short, as nobody tells this server when the account is closed.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt

from lib.access.ended import EndedSessions

logger = logging.getLogger(__name__)

COOKIE = "anomaly_session"
HOURS, ACCOUNT_HOURS = 12.0, 2.0
_AUDIENCE, _ALGORITHM = "anomaly session", "HS256"
_KEY_BYTES = 32
_ENDED = ".ended_sessions"


class Sessions:
    """Makes and reads cookies. ``hours``: how long a session lasts at most.

    Servers that share ``key_file`` share sessions, and know of those that were ended at another one.
    """

    def __init__(self, key_file: Path, hours: float = HOURS):
        self._key = read_key(key_file)
        self.hours = hours
        self._ended = EndedSessions(key_file.with_name(_ENDED))

    @property
    def key(self) -> bytes:
        """What cookies are signed with."""
        return self._key

    def for_token(self, name: str, sha256: str, expires: float | None = None) -> tuple[str, int]:
        """The cookie of a token of the file, and the seconds it lasts; not longer than the token (POSIX seconds)."""
        now = time.time()
        until = min(now + self.hours * 3600, expires or float("inf"))
        return self._signed({"sub": name, "token": sha256}, now, until)

    def for_account(self, name: str, roles: Iterable[str]) -> tuple[str, int]:
        """The cookie of a Keycloak account with its roles, and the seconds it lasts."""
        now = time.time()
        until = now + min(self.hours, ACCOUNT_HOURS) * 3600
        return self._signed({"sub": name, "roles": list(roles)}, now, until)

    def read(self, cookie: str) -> dict[str, Any] | None:
        """What a cookie says; None for one that is forged, over, ended or of another server."""
        try:
            said = jwt.decode(
                cookie, self._key, algorithms=[_ALGORITHM], audience=_AUDIENCE,
                options={"require": ["exp", "iat", "sub", "jti"]},
            )  # fmt: skip
        except jwt.InvalidTokenError:
            return None
        return None if str(said["jti"]) in self._ended else said

    def end(self, cookie: str) -> None:
        """Refuse a cookie from now on, also a copy of it, wherever the key of this server counts."""
        said = self.read(cookie)
        if said is not None:
            self._ended.add(str(said["jti"]), float(said["exp"]))

    def _signed(self, claims: Mapping[str, Any], now: float, until: float) -> tuple[str, int]:
        claims = {
            **claims, "aud": _AUDIENCE, "iat": int(now), "exp": int(until), "jti": secrets.token_urlsafe(12),
        }  # fmt: skip
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM), max(1, int(until - now))


def read_key(path: Path) -> bytes:
    """The key in ``path``, made there (mode 0600) when there is none.

    Where that is not possible, or others may read it, a key of this process alone: sessions then end with the server.
    """
    try:
        if not path.exists():
            _make(path)
        if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError("others may read it (chmod 600)")
        key = bytes.fromhex(path.read_text("ascii").strip())
        if len(key) < _KEY_BYTES:
            raise ValueError("it is too short")
        return key
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning("the key of sessions %s is not used (%s): sessions end when the server does", path.name, reason)
        return secrets.token_bytes(_KEY_BYTES)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(secrets.token_hex(_KEY_BYTES) + "\n")
        # Whole at once, and the first of two servers that start together wins.
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
