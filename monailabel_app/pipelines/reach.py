"""Who can reach the server, and whether they are asked for anything: decided before it starts."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from monailabel_app.access.tokens import TokenStore, default_file
from monailabel_app.errors import InvalidSettings

MAKE_TOKEN = "python main.py tokens create --name NAME --role admin"
_TRUE = {"true", "1", "yes", "on", "t", "y"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def conf_of(words: Sequence[str]) -> dict[str, str]:
    """The pairs after ``--conf`` (or ``-c``) among arguments of the stock server; the last of a name counts."""
    found = {}
    for place, word in enumerate(words):
        if word in {"--conf", "-c"} and place + 2 < len(words):
            found[words[place + 1]] = words[place + 2]
    return found


def has_tokens(root: Path, conf: Mapping[str, str]) -> bool:
    """Whether a token that is still valid exists. Raises TokensUnreadable."""
    return any(not token.expired() for token in TokenStore(default_file(root, conf)).tokens())


def is_keycloak(environment: Mapping[str, str]) -> bool:
    """Whether MONAI Label's login by Keycloak is on."""
    return environment.get("MONAI_LABEL_AUTH_ENABLE", "").strip().lower() in _TRUE


def asks_everybody(root: Path, conf: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether the server asks also programs of its own machine for a token or an account. Raises TokensUnreadable."""
    mode = conf.get("auth", "auto").strip().lower()
    if mode == "open":
        return False
    # Those that are over count: a server does not open up because its last token has expired.
    there_are = bool(TokenStore(default_file(root, conf)).tokens())
    return mode == "token" or there_are or is_keycloak(environment)


def check_reach(root: Path, host: str, conf: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """What to say of the server's openness; empty where it is closed or this machine's alone.

    Raises InvalidSettings for a server that others reach and that would ask them for a token nobody has.
    """
    if conf.get("auth", "auto").strip().lower() == "open":
        where = "this machine" if is_loopback(host) else f"everybody who reaches {host}"
        return f"WARNING: nobody is asked for a token; {where} may read, change and delete every scan and label"
    if is_loopback(host) or is_keycloak(environment) or has_tokens(root, conf):
        return ""
    raise InvalidSettings(
        f"others can reach {host}, and there is no token that they could sign in with. Make one: {MAKE_TOKEN} ; or, "
        "in a closed network with nothing that matters, start with --open to ask nobody"
    )


def check_tls(cert: Path | None, key: Path | None) -> list[str]:
    """The stock server's arguments for TLS; none without a certificate. Raises InvalidSettings for files that do not
    belong together or cannot be read.
    """
    if cert is None and key is None:
        return []
    if cert is None or key is None:
        raise InvalidSettings("expected --tls-cert and --tls-key together, got one of them")
    try:
        # An empty password: one that is asked for at the terminal would hold up an unattended start.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise InvalidSettings(
            f"expected a certificate and its key as PEM files without a password in {cert} and {key}, got {reason}"
        ) from error
    return ["--ssl_certfile", str(cert), "--ssl_keyfile", str(key)]
