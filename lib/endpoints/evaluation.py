"""``/anomaly/evaluation/``: the reports of the scoring method ``evaluate``, for whoever may read scans.

A report shows scans and their ids, so it needs the same role as a scan. Its page is a file that needs nothing else;
the headers see to it that a browser obeys no script and no style in it but its own, and keeps it apart from the rest
of this server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, HTMLResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.scoring import reports
from lib.scoring.base import FOLDER

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Evaluation"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_HASHES = r"((?: 'sha256-[A-Za-z0-9+/=]{44}'){1,4})"
# What the page says of itself, before anything that comes from a scan; only hashes are taken over.
_OWN_POLICY = re.compile(rf"style-src{_HASHES}; script-src{_HASHES};")
_HEAD_BYTES = 4096
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@router.get("/anomaly/evaluation/", summary="Reports of evaluations on this server")
def list_reports(user: User = _USER) -> list[dict[str, Any]]:
    """The newest first: id, time, models, sets with their numbers of scans, and the address of the page."""
    prefix = f"{settings.MONAI_LABEL_API_STR}/anomaly/evaluation"
    return [{**report, "url": f"{prefix}/{report['id']}/"} for report in reports.reports(_folder())]


@router.get("/anomaly/evaluation/{report}/", summary="A report as a page")
def report_page(report: str, user: User = _USER) -> HTMLResponse:
    """One HTML page, without anything that is fetched from elsewhere."""
    page = reports.find(_folder(), report).read_text(encoding="utf-8")
    return HTMLResponse(page, headers={**_SAFE, "Content-Security-Policy": policy(page)})


@router.get("/anomaly/evaluation/{report}/{name}", summary="A report's figures")
def report_file(report: str, name: str, user: User = _USER) -> FileResponse:
    """evaluation.json, evaluation.csv, scans.csv or evaluation.md."""
    path = reports.find(_folder(), report, name)
    if name == reports.PAGE:
        return report_page(report, user)
    headers = {**_SAFE, "Content-Security-Policy": "default-src 'none'; sandbox"}
    return FileResponse(path, media_type=reports.FILES[name], filename=f"{report}-{name}", headers=headers)


def policy(page: str) -> str:
    """The header Content-Security-Policy for a page: its own style and script by their hashes, pictures inside it.

    No script is allowed to a page that does not name the hashes of its own.
    """
    own = _OWN_POLICY.search(page[:_HEAD_BYTES].replace("&#x27;", "'").replace("&#39;", "'"))
    style, script = own.groups() if own else (" 'none'", " 'none'")
    return (
        f"default-src 'none'; img-src data:; style-src{style}; script-src{script}; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; sandbox{' allow-scripts' if own else ''}"
    )


def _folder() -> Path:
    return Path(app_instance().app_dir) / FOLDER
