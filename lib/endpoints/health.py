"""``/anomaly/health`` for whoever watches the process; ``/anomaly/ready`` with the reasons, for those who may know."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib import readiness
from lib.figures import serving_app

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Operation"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_FAILING: dict[int | str, dict[str, Any]] = {503: {"description": "Starting, or something that it needs fails"}}


@router.get("/anomaly/health", summary="Whether the server works", responses=_FAILING)
def health(response: Response) -> dict[str, str]:
    """``status``: ok, starting or failing (both 503). Everybody may ask, so nothing else is said."""
    app = serving_app()
    status = "starting" if app is None else readiness.OK if readiness.works(app) else readiness.FAILING
    response.status_code = 200 if status == readiness.OK else 503
    response.headers["Cache-Control"] = "no-store"
    return {"status": status}


@router.get("/anomaly/ready", summary="What the server needs, and whether it is there", responses=_FAILING)
def ready(response: Response, user: User = _USER) -> dict[str, Any]:
    """``status``, and of every ``checks`` entry whether it is ``ok`` and what is the matter; 503 if one fails."""
    app = serving_app()
    checks = [] if app is None else readiness.checks(app)
    good = app is not None and all(check["ok"] for check in checks)
    response.status_code = 200 if good else 503
    response.headers["Cache-Control"] = "no-store"
    return {"status": "starting" if app is None else readiness.OK if good else readiness.FAILING, "checks": checks}
