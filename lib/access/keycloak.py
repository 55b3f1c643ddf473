"""Accounts of a Keycloak realm: are its access tokens (JWT, RFC 7519) genuine, for this server, and of which role?

MONAI Label's own check names no algorithm, which every current PyJWT refuses, and looks at neither issuer nor
audience. Settings are MONAI Label's (``MONAI_LABEL_AUTH_*``). Keys come from the realm's key set by their id, are kept
for a while and fetched again when a token names a new one; the realm's single public key serves where there is no set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import requests
from monailabel.config import Settings, settings

from lib.access.errors import BadCredentials, LoginUnreachable, WrongRole
from lib.access.principal import ADMIN, READER

logger = logging.getLogger(__name__)

# Only those with a public and a private key: with HS256 the public key would be the secret that everybody knows.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
KEYS_SECONDS = 600.0
# A token that names an unknown key makes the server ask Keycloak, at most this often.
ASK_SECONDS = 10.0
LEEWAY_SECONDS = 30
_KINDS = {"RSA", "EC", "OKP"}
_LONGEST_ANSWER = 2**20


@dataclass(frozen=True)
class Account:
    """Who a token is of. role: of this server. roles: those of MONAI Label that the realm gives."""

    name: str
    role: str
    roles: tuple[str, ...]


class Keycloak:
    """One realm. Methods ask it over the network and block: call them in a thread."""

    def __init__(self, platform: Settings = settings):
        self._platform = platform
        self._realm = platform.MONAI_LABEL_AUTH_REALM_URI.rstrip("/")
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._issuers = {self._realm}
        self._asked = self._fetched = float("-inf")

    def account(self, token: str) -> Account:
        """Whose access token this is. Raises BadCredentials, WrongRole, LoginUnreachable."""
        try:
            head = jwt.get_unverified_header(token)
            key = self._key(head.get("kid"))
            claims = jwt.decode(
                token, key, algorithms=list(ALGORITHMS), leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss"], "verify_aud": False},
            )  # fmt: skip
        except jwt.ExpiredSignatureError as error:
            raise BadCredentials("the token of the login has expired: sign in again") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            # The kind of fault only: neither the token nor what is in it belongs into a log.
            logger.info("a token of the login was refused (%s)", type(error).__name__)
            raise BadCredentials("the token is none that this server's login has made") from error
        self._check(claims)
        return self._mapped(claims)

    def sign_in(self, user: str, password: str) -> dict[str, Any]:
        """Keycloak's answer to a name and password, with ``access_token``. Raises BadCredentials, LoginUnreachable."""
        form = {
            "client_id": self._platform.MONAI_LABEL_AUTH_CLIENT_ID,
            "username": user,
            "password": password,
            "grant_type": "password",
        }
        answer = self._ask("POST", self._discovered()["token_endpoint"], data=form)
        if answer.status_code in {400, 401, 403}:
            raise BadCredentials("the login knows no account of that name and password")
        said = self._object(answer)
        if not isinstance(said.get("access_token"), str):
            raise LoginUnreachable("expected a token from the login (Keycloak), got an answer without one")
        return said

    def _check(self, claims: Mapping[str, Any]) -> None:
        client = self._platform.MONAI_LABEL_AUTH_CLIENT_ID
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if str(claims.get("iss", "")).rstrip("/") not in self._issuers:
            raise BadCredentials("the token is of another issuer than this server's login")
        if client not in audiences and claims.get("azp") != client:
            raise BadCredentials(f"the token is for another client than {client!r}")
        if claims.get("typ", "Bearer") != "Bearer":
            raise BadCredentials("expected an access token, got another kind (an ID or refresh token)")

    def _mapped(self, claims: Mapping[str, Any]) -> Account:
        found: Any = claims
        for part in self._platform.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
            found = found.get(part) if isinstance(found, Mapping) else None
        given = {role for role in found if isinstance(role, str)} if isinstance(found, list) else set()
        roles = tuple(role for role in every_role(self._platform) if role in given)
        if not roles:
            raise WrongRole(
                "the account has none of this server's roles; its administrator can give it one of "
                f"{', '.join(every_role(self._platform))}"
            )
        name = claims.get(self._platform.MONAI_LABEL_AUTH_TOKEN_USERNAME) or claims.get("sub") or "?"
        return self.session(str(name)[:128], roles)

    def session(self, name: str, roles: tuple[str, ...]) -> Account:
        """An account whose roles are known already."""
        admin = self._platform.MONAI_LABEL_AUTH_ROLE_ADMIN in roles
        return Account(name, ADMIN if admin else READER, roles)

    def _key(self, kid: str | None) -> jwt.PyJWK:
        with self._lock:
            now = time.monotonic()
            stale, unknown = now - self._fetched > KEYS_SECONDS, self._find(kid) is None
            if (stale or unknown) and now - self._asked >= ASK_SECONDS:
                self._asked = now
                try:
                    self._fetch()
                    self._fetched = time.monotonic()
                except LoginUnreachable:
                    if unknown:
                        raise
                    logger.warning("the login's keys could not be fetched anew; those known are used")
            found = self._find(kid)
        if found is None and not self._keys:
            raise LoginUnreachable("the login (Keycloak) has not given its keys yet: try again in a moment")
        if found is None:
            raise BadCredentials("the token is signed with a key that this server's login does not have")
        return found

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None or None in self._keys:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _fetch(self) -> None:
        try:
            about = self._discovered()
            self._issuers = {self._realm, str(about["issuer"]).rstrip("/")}
            found = self._object(self._ask("GET", about["jwks_uri"])).get("keys")
            keys = {}
            for entry in found if isinstance(found, list) else ():
                usable = isinstance(entry, Mapping) and entry.get("kty") in _KINDS and entry.get("use", "sig") == "sig"
                if usable and isinstance(entry.get("kid"), str):
                    keys[entry["kid"]] = jwt.PyJWK(dict(entry))
        except (LoginUnreachable, jwt.PyJWTError, KeyError) as error:
            logger.info("the login has no usable key set (%s)", type(error).__name__)
            keys = {}
        if not keys:
            keys = {None: self._public_key()}
        self._keys = keys

    def _public_key(self) -> jwt.PyJWK:
        """The key that a realm's own address gives, without an id: RSA, as Keycloak's default."""
        text = self._object(self._ask("GET", self._realm)).get("public_key")
        pem = f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----"
        algorithm = jwt.get_algorithm_by_name("RS256")
        try:
            return jwt.PyJWK(algorithm.to_jwk(algorithm.prepare_key(pem), as_dict=True) | {"alg": "RS256"})
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise LoginUnreachable("expected a public key from the login (Keycloak), got none") from error

    def _discovered(self) -> dict[str, Any]:
        about = self._object(self._ask("GET", f"{self._realm}/.well-known/openid-configuration"))
        if not all(isinstance(about.get(key), str) for key in ("issuer", "jwks_uri", "token_endpoint")):
            raise LoginUnreachable("expected the login's addresses from Keycloak, got something else")
        return about

    def _ask(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return requests.request(
                method, url, timeout=self._platform.MONAI_LABEL_AUTH_TIMEOUT, allow_redirects=False, **options
            )
        except requests.RequestException as error:
            raise LoginUnreachable(f"the login (Keycloak) does not answer ({type(error).__name__})") from error

    def _object(self, answer: requests.Response) -> dict[str, Any]:
        if answer.status_code != 200 or len(answer.content) > _LONGEST_ANSWER:
            raise LoginUnreachable(f"the login (Keycloak) answered with status {answer.status_code}")
        try:
            said = answer.json()
        except ValueError as error:
            raise LoginUnreachable("expected JSON from the login (Keycloak), got something else") from error
        if not isinstance(said, dict):
            raise LoginUnreachable("expected a JSON object from the login (Keycloak), got something else")
        return said


def every_role(platform: Settings = settings) -> tuple[str, ...]:
    """MONAI Label's roles, the mightiest first."""
    return (
        platform.MONAI_LABEL_AUTH_ROLE_ADMIN,
        platform.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        platform.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        platform.MONAI_LABEL_AUTH_ROLE_USER,
    )
