"""The connection to a DICOMweb archive."""

from __future__ import annotations

from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings as platform
from monailabel.datastore.dicom import DICOMwebClientX

TIMEOUT_SECONDS = (10.0, 300.0)


class _ImpatientSession(requests.Session):
    """Gives up when the archive does not answer; by itself ``requests`` waits for ever."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", TIMEOUT_SECONDS)
        return super().request(*args, **kwargs)


def connect(url: str) -> DICOMwebClient:
    """A client for the archive at ``url``, with MONAI Label's settings for credentials and prefixes."""
    if "googleapis.com" in url:
        return DICOMwebClient(url=url, session=create_session_from_gcp_credentials())
    session = _ImpatientSession()
    if platform.MONAI_LABEL_DICOMWEB_USERNAME and platform.MONAI_LABEL_DICOMWEB_PASSWORD:
        session.auth = (platform.MONAI_LABEL_DICOMWEB_USERNAME, platform.MONAI_LABEL_DICOMWEB_PASSWORD)
    return DICOMwebClientX(
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
