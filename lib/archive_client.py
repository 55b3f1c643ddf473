"""The connection to a DICOMweb archive, whose answers are read within the limits of uploads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings as platform
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset

from lib.errors import ArchiveUnreachable, InvalidRequest
from lib.ids import check_uid
from lib.perimeter.body_limit import Limits
from monailabel_app.errors import UnreadableVolume
from monailabel_app.io.dicom_limits import read_bounded

TIMEOUT_SECONDS = (10.0, 300.0)
# Of an answer that is a list: read as JSON it takes about ten times its length.
LONGEST_LIST = 64 * 2**20
_CHUNK = 2**18
_MAGIC = b"DICM"


class _Session(requests.Session):
    """Gives up when the archive does not answer, or does not end; by itself ``requests`` goes on for ever."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """As of its base. Without ``stream`` the whole answer is read; one that is too long is marked by its limit."""
        kwargs.setdefault("timeout", TIMEOUT_SECONDS)
        streamed = kwargs.pop("stream", False)
        answer = super().request(*args, stream=True, **kwargs)
        if not streamed:
            asked = str((kwargs.get("headers") or {}).get("Accept", ""))
            longest = LONGEST_LIST if "json" in asked else longest_answer()
            # An error would be taken for a broken connection, and asked for again.
            answer.longer_than = None if _read_all(answer, longest) else longest
        return answer


class _Client(DICOMwebClientX):
    """MONAI Label's client, which takes no answer and parses no object that nobody could have uploaded.

    What is retrieved of a series belongs to it, and is named so that it can be kept as a file: MONAI Label's download
    looks at neither.
    """

    def retrieve_series(self, study: str, series: str, *args: Any, **kwargs: Any) -> list[Dataset]:
        """Its objects. Raises UnreadableVolume (``check_identity``)."""
        found = super().retrieve_series(study, series, *args, **kwargs)
        for instance in found:
            check_identity(instance, series)
        return found

    def _http_get(self, *args: Any, **kwargs: Any) -> requests.Response:
        return _checked(super()._http_get(*args, **kwargs))

    def _http_post(self, *args: Any, **kwargs: Any) -> requests.Response:
        return _checked(super()._http_post(*args, **kwargs))

    def _decode_multipart_message(self, response: requests.Response, stream: bool) -> Iterator[bytes]:
        for part in super()._decode_multipart_message(response, stream):
            if part[128:132] == _MAGIC:
                # Raises UnreadableVolume; the client's own reader would take anything.
                read_bounded(io.BytesIO(part), len(part))
            yield part


def check_identity(instance: Dataset, series: str) -> None:
    """Raises UnreadableVolume for an object of another series, or one that no file can be named after."""
    try:
        check_uid(str(instance.get("SOPInstanceUID") or ""))
    except InvalidRequest as error:
        raise UnreadableVolume(
            "expected objects whose SOPInstanceUID is a DICOM identifier in the DICOMweb archive's answer, got another "
            "one: correct that object in the archive"
        ) from error
    if str(instance.get("SeriesInstanceUID") or "") != series:
        raise UnreadableVolume(
            "expected objects of the series that was asked for in the DICOMweb archive's answer, got one of another "
            "series: check the archive and what lies between"
        )


def longest_answer() -> int:
    """Bytes of an answer that holds objects: as many as of an upload (``--conf max_upload_mb``)."""
    return Limits.of(platform.MONAI_LABEL_APP_CONF or {}).upload


def _read_all(answer: requests.Response, longest: int) -> bool:
    """Read what comes, unpacked, up to ``longest`` bytes; whether that is all."""
    body = bytearray()
    for piece in answer.iter_content(_CHUNK):
        body += piece
        if len(body) > longest:
            answer.close()
            answer._content = b""
            return False
    answer._content = bytes(body)
    return True


def _checked(answer: requests.Response) -> requests.Response:
    """Raises ArchiveUnreachable for an answer that was too long."""
    longest = getattr(answer, "longer_than", None)
    if longest is not None:
        raise ArchiveUnreachable(
            f"expected the DICOMweb archive's answer to have at most {longest / 2**20:g} MiB, got a longer one "
            "(--conf max_upload_mb for series; narrow MONAI_LABEL_DICOMWEB_SEARCH_FILTER for lists)"
        )
    return answer


def connect(url: str) -> DICOMwebClient:
    """A client for the archive at ``url``, with MONAI Label's settings for credentials and prefixes."""
    if "googleapis.com" in url:
        return DICOMwebClient(url=url, session=create_session_from_gcp_credentials())
    session = _Session()
    if platform.MONAI_LABEL_DICOMWEB_USERNAME and platform.MONAI_LABEL_DICOMWEB_PASSWORD:
        session.auth = (platform.MONAI_LABEL_DICOMWEB_USERNAME, platform.MONAI_LABEL_DICOMWEB_PASSWORD)
    return _Client(
        url=url,
        session=session,
        qido_url_prefix=platform.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=platform.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=platform.MONAI_LABEL_STOW_PREFIX,
    )


def fault_of_archive(client: DICOMwebClient, seconds: float) -> str:
    """Why the archive does not answer a short question; empty where it does."""
    session = getattr(client, "_session", None) or requests
    try:
        answer = session.get(_studies(client), params={"limit": 1}, timeout=(seconds, seconds), stream=True)
        answer.close()
    except requests.RequestException as error:
        return f"no answer within {seconds:.0f} s ({type(error).__name__})"
    return f"it answers {answer.status_code}: see its log and this server's credentials" if not answer.ok else ""


def _studies(client: DICOMwebClient) -> str:
    prefix = getattr(client, "qido_url_prefix", None)
    return "/".join([client.base_url.rstrip("/"), *([prefix] if prefix else []), "studies"])
