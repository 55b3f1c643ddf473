"""``/proxy/dicom/...``: the way of the OHIF viewer to the DICOMweb archive.

MONAI Label's own way drops the query, so that OHIF's search for one patient returns the studies of all
patients and lists them as that patient's; and it waits for the archive inside the event loop. Here the query
goes along, in a thread, and only addresses below the archive's DICOMweb root are reached.
"""

from __future__ import annotations

from urllib.parse import quote

import anyio.from_thread
import requests
import urllib3
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints import proxy as stock
from monailabel.endpoints.user.auth import RBAC, User

from lib.errors import ArchiveUnreachable, InvalidRequest

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Others"])

TIMEOUT_SECONDS = (10, 300)
# What belongs to one connection and not to the answer (RFC 9110, section 7.6.1), and what the server sets.
_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "date", "server"}
_PASSED_TO_ARCHIVE = ("accept", "accept-encoding", "content-type", "range")


async def _body(request: Request) -> bytes:
    return await request.body()


@router.get("/proxy/dicom/{path:path}", include_in_schema=False)
@router.post("/proxy/dicom/{path:path}", include_in_schema=False)
def to_archive(
    request: Request,
    path: str,
    body: bytes = Depends(_body),
    user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),
):
    """Pass a request on to the archive the server was started with, and its answer back."""
    operation, address = split_operation(path)
    archive = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not archive.startswith(("http://", "https://")):
        raise InvalidRequest(
            "the viewer shows studies of a DICOMweb archive; this server was started with a folder: "
            "start it with --studies http://ARCHIVE/dicom-web"
        )
    if "googleapis.com" in archive:
        return anyio.from_thread.run(stock.proxy_dicom, request, operation, address)
    try:
        answer = requests.request(
            request.method,
            # Quoted once more, because requests would turn %2e into a dot.
            f"{archive}/{quote(address)}",
            params=request.url.query or None,
            data=body if request.method == "POST" else None,
            headers={name: request.headers[name] for name in _PASSED_TO_ARCHIVE if name in request.headers},
            auth=_credentials(),
            timeout=TIMEOUT_SECONDS,
            stream=True,
            allow_redirects=False,
        )
        content = answer.raw.read(decode_content=False)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ArchiveUnreachable(f"the DICOMweb archive did not answer ({type(error).__name__})") from error
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
    return Response(content, status_code=answer.status_code, headers=headers)


def split_operation(path: str) -> tuple[str, str]:
    """``qido/studies`` -> the operation, and the address below the archive's root.

    Raises InvalidRequest for an address that leads out of that root.
    """
    if any(part in {".", ".."} for part in path.replace("\\", "/").split("/")):
        raise InvalidRequest("expected an address below the archive's DICOMweb root, got one with '..'")
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


def _credentials() -> tuple[str, str] | None:
    name, word = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    return (name, word) if name and word else None
