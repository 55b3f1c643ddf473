"""What may pass between a viewer and the DICOMweb archive behind this server: addresses, headers, answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from monailabel.config import settings

from lib.errors import ArchiveTimeout, ArchiveUnreachable, InvalidRequest

CONNECT_SECONDS = 10.0
# An archive answers an upload when it has stored everything.
STORE_PATIENCE = 10
CHUNK = 256 * 1024
_MOST_REDIRECTS = 3
# Identifiers, tags, frames and the words of DICOMweb (PS3.18, section 8 and 10) need no other characters.
_PART = re.compile(r"[A-Za-z0-9._,~=+-]{1,200}")
_STORE = re.compile(r"studies(/[0-9.]{1,64})?/?")
# Never what says who asks (Authorization, Cookie, Forwarded), nor what belongs to this connection (Host, ...).
_TO_ARCHIVE = ("accept", "accept-encoding", "accept-language", "content-type", "if-none-match", "range")
# Never its cookies, its permissions for browsers, addresses inside the hospital, or its own asking for a password.
_FROM_ARCHIVE = (
    "accept-ranges", "age", "cache-control", "content-disposition", "content-encoding", "content-language",
    "content-length", "content-range", "content-type", "etag", "expires", "last-modified", "retry-after", "vary",
    "warning",
)  # fmt: skip
_FAULTS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


def archive_root() -> str:
    """The archive's DICOMweb address without a slash at its end. Raises InvalidRequest for a folder of files."""
    archive = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not archive.startswith(("http://", "https://")):
        raise InvalidRequest(
            "the viewer shows studies of a DICOMweb archive; this server was started with a folder: "
            "start it with --studies http://ARCHIVE/dicom-web"
        )
    return archive


def split_operation(path: str) -> tuple[str, str]:
    """``qido/studies`` -> the operation, and the address below the archive's root.

    Raises InvalidRequest for an address that could lead out of that root, however it is written.
    """
    parts = path.split("/")
    if parts[-1] == "" and len(parts) > 1:
        parts.pop()
    if any(part in {".", ".."} or not _PART.fullmatch(part) for part in parts):
        raise InvalidRequest(
            "expected an address below the archive's DICOMweb root (studies, series, instances, ...), got one with "
            "'..', an empty part, or a character that none of them has"
        )
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    operation, _, rest = path.partition("/")
    if operation not in prefixes:
        return "", path
    # Some versions of OHIF ask for metadata at the address for searches.
    if operation == "qido" and rest.endswith("metadata"):
        operation = "wado"
    prefix = prefixes[operation]
    return operation, f"{prefix}/{rest}" if prefix else rest


def check_store(operation: str, path: str) -> None:
    """Raises InvalidRequest unless a POST to ``path`` (as the viewer wrote it) stores objects."""
    rest = path.partition("/")[2] if operation else path
    if operation not in {"", "stow"} or not _STORE.fullmatch(rest):
        raise InvalidRequest("expected POST only to store objects (studies, or studies/UID); everything else is GET")


def to_archive(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that the archive is given."""
    passed = {name: headers[name] for name in _TO_ARCHIVE if name in headers}
    # The library would ask for a packed answer by itself.
    return {"accept-encoding": "identity", **passed}


def from_archive(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of the archive's answer that the viewer is given."""
    return {name: headers[name] for name in _FROM_ARCHIVE if name in headers}


def ask(
    method: str,
    address: str,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: BinaryIO | None = None,
) -> requests.Response:
    """The archive's answer, of which only the head was read. The caller closes it.

    Redirects are followed for GET and inside the archive's root only. Raises ArchiveUnreachable or ArchiveTimeout.
    """
    root = archive_root()
    url = f"{root}/{address}" + (f"?{query}" if query else "")
    patience = float(settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT) * (STORE_PATIENCE if method == "POST" else 1)
    auth = _Credentials()
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            answer = requests.request(
                method, url, headers=dict(headers or {}), data=body, auth=auth, stream=True, allow_redirects=False,
                timeout=(min(CONNECT_SECONDS, patience), patience),
            )  # fmt: skip
        except requests.Timeout as error:
            raise ArchiveTimeout(
                f"the DICOMweb archive did not answer within {patience:.0f} s (MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)"
            ) from error
        except _FAULTS as error:
            raise ArchiveUnreachable(f"the DICOMweb archive did not answer ({type(error).__name__})") from error
        if answer.status_code in {401, 403, 407}:
            answer.close()
            raise ArchiveUnreachable(
                f"the DICOMweb archive answers {answer.status_code} to this server: see MONAI_LABEL_DICOMWEB_USERNAME "
                "and MONAI_LABEL_DICOMWEB_PASSWORD, and its log"
            )
        if answer.status_code not in {301, 302, 303, 307, 308}:
            return answer
        url = urljoin(url, answer.headers.get("location", ""))
        answer.close()
        if method != "GET" or not is_below(url, root):
            raise ArchiveUnreachable("the DICOMweb archive redirects to another place, where this server does not go")
    raise ArchiveUnreachable("the DICOMweb archive redirects in a circle")


def is_below(url: str, root: str) -> bool:
    """Whether ``url`` lies below ``root``: same scheme, host and port, and a path that starts with it."""
    one, base = urlsplit(url), urlsplit(root)
    if (one.scheme, one.netloc) != (base.scheme, base.netloc) or "%" in one.path:
        return False
    return one.path.startswith(f"{base.path.rstrip('/')}/") and ".." not in one.path.split("/")


def pieces(answer: requests.Response) -> Iterator[bytes]:
    """The answer's body as the archive sent it (not unpacked), a quarter of a MiB at a time.

    Raises ArchiveUnreachable where it ends too early.
    """
    try:
        yield from answer.raw.stream(CHUNK, decode_content=False)
    except _FAULTS as error:
        raise ArchiveUnreachable(f"the DICOMweb archive went away ({type(error).__name__})") from error
    finally:
        with suppress(*_FAULTS):
            answer.close()


class _Credentials(requests.auth.AuthBase):
    """This server's own credentials for the archive, and nothing else: without it a file ``.netrc`` would be read."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        name, word = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        if "googleapis.com" in settings.MONAI_LABEL_STUDIES:
            request.headers["Authorization"] = f"Bearer {_google_token()}"
        elif name and word:
            return requests.auth.HTTPBasicAuth(name, word)(request)
        return request


def _google_token() -> str:
    import google.auth
    from google.auth.transport.requests import Request

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(Request())
    return credentials.token
