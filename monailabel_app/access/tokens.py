"""Tokens of people and programs that use the server: a file of names, roles, dates and hashes, never of tokens.

A token is 256 random bits, so that a plain SHA-256 of it cannot be reversed by trying. The file belongs to the user
who runs the server (mode 0600), is replaced as a whole, and is read again when it changes: a token that is made or
revoked on the command line counts from the next request on. A file that cannot be trusted admits nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError
from monailabel_app.files import open_own, replace_file

try:
    import fcntl
except ImportError:  # Windows: two commands at the same moment could lose one of the two changes.
    fcntl = None

ROLES = ("reader", "admin", "monitor")
PREFIX = "anomaly_"
FORMAT = 1
ENVIRONMENT = "ANOMALY_TOKENS"
LONGEST_TOKEN = 200
LONGEST_FILE = 2**20
MOST_DAYS = 3650
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


class InvalidToken(AnomalyAppError):
    """A token cannot be made, or there is none of that name."""


class TokensUnreadable(AnomalyAppError):
    """The file of tokens is damaged, or others than its owner may write it: nobody is admitted until it is mended."""

    status = 503


@dataclass(frozen=True)
class Token:
    """One entry of the file. sha256: of the token itself, hex. created, expires: UTC; None: does not expire."""

    name: str
    role: str
    sha256: str
    created: datetime
    expires: datetime | None = None

    def expired(self, now: datetime | None = None) -> bool:
        """Whether its time is over."""
        return self.expires is not None and (now or _now()) >= self.expires


def default_file(root: Path, conf: Mapping[str, Any] | None = None) -> Path:
    """Where the tokens of an app folder are: ``--conf tokens``, else $ANOMALY_TOKENS, else ``model/tokens.json``."""
    named = (conf or {}).get("tokens") or os.environ.get(ENVIRONMENT)
    return Path(named).expanduser() if named else Path(root) / "model" / "tokens.json"


class TokenStore:
    """The tokens in ``path``; no file is as good as an empty one. Safe to use from several threads and processes."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._tokens: tuple[Token, ...] = ()

    def tokens(self) -> tuple[Token, ...]:
        """All entries as the file is now, expired ones too. Raises TokensUnreadable."""
        with self._lock:
            try:
                found = self.path.stat()
            except FileNotFoundError:
                self._seen, self._tokens = None, ()
                return ()
            except OSError as error:
                raise self._fault(f"it cannot be looked at ({type(error).__name__})") from error
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode)
            if stamp != self._seen:
                self._seen = None
                self._tokens = self._read(found)
                self._seen = stamp
            return self._tokens

    def find(self, secret: str) -> Token | None:
        """The entry of a token that is shown; None for an unknown or expired one. Raises TokensUnreadable.

        Every entry is compared, each in constant time.
        """
        tokens = self.tokens()
        if not secret or len(secret) > LONGEST_TOKEN:
            return None
        digest = digest_of(secret)
        found = None
        for token in tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return None if found is None or found.expired() else found

    def by_hash(self, sha256: str) -> Token | None:
        """The entry with that hash, unless it is expired. Raises TokensUnreadable."""
        found = [token for token in self.tokens() if hmac.compare_digest(token.sha256, sha256)]
        return found[0] if found and not found[0].expired() else None

    def create(self, name: str, role: str, days: float | None = None) -> tuple[str, Token]:
        """Make a token and return it with its entry: the only time that it can be seen.

        An expired token of the same name makes way. Raises InvalidToken for a name that is taken or malformed, an
        unknown role or a lifetime outside of 0 to 3650 days; TokensUnreadable.
        """
        if not _NAME.fullmatch(name):
            raise InvalidToken(
                f"expected a name of up to 64 letters, digits, '.', '_', '@' or '-', beginning with a letter or digit; "
                f"got {name[:80]!r}"
            )
        if role not in ROLES:
            raise InvalidToken(f"expected a role out of {', '.join(ROLES)}, got {role[:80]!r}")
        if days is not None and not 0 < days <= MOST_DAYS:
            raise InvalidToken(f"expected a lifetime of more than 0 and at most {MOST_DAYS} days, got {days:g}")
        with self._alone():
            kept = [token for token in self.tokens() if not (token.name == name and token.expired())]
            if any(token.name == name for token in kept):
                raise InvalidToken(
                    f"there is a token named {name!r} already: choose another name (to replace a token, make the new "
                    "one first, hand it out, then revoke the old one)"
                )
            secret = PREFIX + secrets.token_urlsafe(32)
            now = _now()
            expires = now + timedelta(days=days) if days is not None else None
            made = Token(name, role, digest_of(secret), now, expires)
            self._write([*kept, made])
        return secret, made

    def revoke(self, name: str) -> Token:
        """Take a token out; it is refused from the next request on. Raises InvalidToken, TokensUnreadable."""
        with self._alone():
            tokens = self.tokens()
            found = [token for token in tokens if token.name == name]
            if not found:
                there_is = ", ".join(token.name for token in tokens) or "none"
                raise InvalidToken(f"no token named {name[:80]!r}; there are: {there_is}")
            self._write([token for token in tokens if token.name != name])
        return found[0]

    def _read(self, found: os.stat_result) -> tuple[Token, ...]:
        if not stat.S_ISREG(found.st_mode):
            raise self._fault("it is no plain file")
        if os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._fault("others than its owner may write it (chmod 600)")
        if found.st_size > LONGEST_FILE:
            raise self._fault(f"it is longer than {LONGEST_FILE} bytes")
        try:
            content = json.loads(self.path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise self._fault(f"it cannot be read ({type(error).__name__})") from error
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise self._fault("it is not JSON") from error
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or not isinstance(content.get("tokens"), list)
        ):
            raise self._fault(f"expected format {FORMAT} with a list of tokens")
        tokens = tuple(self._entry(entry) for entry in content["tokens"])
        if len({token.name for token in tokens}) < len(tokens):
            raise self._fault("a name is there twice")
        return tokens

    def _entry(self, entry: Any) -> Token:
        try:
            token = Token(
                name=entry["name"],
                role=entry["role"],
                sha256=entry["sha256"],
                created=_time(entry["created"]),
                expires=None if entry["expires"] is None else _time(entry["expires"]),
            )
            sound = bool(_NAME.fullmatch(token.name) and token.role in ROLES and _HASH.fullmatch(token.sha256))
        except (KeyError, TypeError, ValueError) as error:
            raise self._fault("an entry is incomplete or malformed") from error
        if not sound:
            raise self._fault("an entry has an unknown role or a malformed name or hash")
        return token

    def _fault(self, what: str) -> TokensUnreadable:
        return TokensUnreadable(
            f"the file of tokens {self.path.name} is not usable: {what}. Nobody is admitted until it is mended: "
            "restore it, or remove it and make new tokens with `main.py tokens create`"
        )

    def _write(self, tokens: list[Token]) -> None:
        content = {"format": FORMAT, "tokens": [asdict(token) for token in tokens]}
        text = json.dumps(content, indent=1, default=datetime.isoformat) + "\n"
        # Lasting: a token that was revoked does not come back with the power.
        replace_file(self.path, text, lasting=True, private=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, whichever process makes it. Raises InvalidToken where nothing can be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = open_own(self.path.with_name(f".{self.path.name}.lock"))
        except OSError as error:
            raise InvalidToken(f"the folder {self.path.parent} cannot be written ({error.strerror})") from error
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def digest_of(secret: str) -> str:
    """What is kept of a token: its SHA-256, hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without zone")
    return time
