"""The server's requests to itself: MONAI Label's sub-processes ask it over HTTP to train, score or infer.

They carry a token that only this server and its children know; it and the server's address go to them in the
environment.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from monailabel.config import settings
from requests.adapters import HTTPAdapter

logger = logging.getLogger(__name__)

TOKEN, ADDRESS, CERTIFICATE = "ANOMALY_INTERNAL_TOKEN", "ANOMALY_SERVER_ADDRESS", "ANOMALY_SERVER_FINGERPRINT"
_SHORTEST = 32
_LOCAL = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def prepare(key: bytes, arguments: Sequence[str] | None = None) -> None:
    """Put token and address into this process's environment, for its children. Called by the server that starts.

    key: that of sessions; several workers of one server so have one token.
    """
    if len(os.environ.get(TOKEN, "")) < _SHORTEST:
        os.environ[TOKEN] = hmac.new(key, b"the server's requests to itself", hashlib.sha256).hexdigest()
    given = list(sys.argv if arguments is None else arguments)
    certificate = _value(given, "--ssl_certfile")
    host = _value(given, "--host") or _value(given, "-i") or ""
    host = _LOCAL.get(host, host)
    host = f"[{host}]" if ":" in host else host
    os.environ[ADDRESS] = f"{'https' if certificate else 'http'}://{host}:{settings.MONAI_LABEL_SERVER_PORT}"
    os.environ.pop(CERTIFICATE, None)
    if certificate:
        os.environ[CERTIFICATE] = fingerprint(Path(certificate))


def is_itself(token: str) -> bool:
    """Whether a token is the one of this server's requests to itself."""
    own = os.environ.get(TOKEN, "")
    return len(own) >= _SHORTEST and hmac.compare_digest(own.encode(), token.encode("utf-8", "surrogatepass"))


def ask(path: str, body: Any, timeout: float | None = None) -> requests.Response:
    """POST ``body`` as JSON to an address of this server, below its API prefix."""
    address = os.environ.get(ADDRESS) or f"http://127.0.0.1:{settings.MONAI_LABEL_SERVER_PORT}"
    headers = {"Authorization": f"Bearer {os.environ[TOKEN]}"} if os.environ.get(TOKEN) else {}
    with requests.Session() as session:
        # No proxy and no netrc of the environment: this is the machine itself.
        session.trust_env = False
        if os.environ.get(CERTIFICATE):
            session.mount("https://", _Pinned(os.environ[CERTIFICATE]))
        return session.post(address + settings.MONAI_LABEL_API_STR + path, json=body, headers=headers, timeout=timeout)


def ask_for(path: str, params: Any, action: str) -> Any:
    """The answer to ``ask``; None, and a line in the log, where the server refuses, as MONAI Label has it."""
    answer = ask(path, params or {})
    if answer.status_code != 200:
        logger.error("the server refused its own request (%s) with status %d", action, answer.status_code)
        return None
    return answer.json()


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate of a PEM file, which is the server's own; hex."""
    text = certificate.read_text("ascii", errors="replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = text[text.index(begin) : text.index(end) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


class _Pinned(HTTPAdapter):
    """Exactly this server's certificate: it is made out for another name than 127.0.0.1."""

    def __init__(self, expected: str):
        self._expected = expected
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, assert_fingerprint=self._expected, assert_hostname=False)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """No chain of certificates is looked at: the fingerprint says more, and is checked before anything is sent."""
        return super().send(request, **{**options, "verify": False})


def _value(arguments: Sequence[str], option: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None
