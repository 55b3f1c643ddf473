"""``/anomaly/studies``: the worklist, from the table of images alone, so that thousands of studies cost no time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib import leases
from lib.endpoints.answers import answer, json_body, read_query
from lib.errors import InvalidRequest
from lib.ids import check_image_id
from lib.studies import StudyQuery, find_study, list_studies

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Studies"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_QUERY = frozenset(field.name for field in fields(StudyQuery))


@router.get("/anomaly/studies", summary="The worklist")
@router.get("/anomaly/studies/", include_in_schema=False)
def studies(request: Request, user: User = _USER) -> JSONResponse:
    """Scans with state, score and review. Parameters: order, state, search, offset, limit, seed (of order=random).

    order: most_anomalous, borderline, random, name, newest. state: new, queued, running, analysed, failed, reviewed.
    """
    query = StudyQuery.read(read_query(request, _QUERY))
    app = app_instance()
    return answer(list_studies(app.datastore(), app.tasks(), query, working(app)))


@router.get("/anomaly/studies/{image}", summary="One study of the worklist")
def study(image: str, user: User = _USER) -> JSONResponse:
    """As in the list."""
    app = app_instance()
    return answer(find_study(app.datastore(), check_image_id(image), working(app)))


@router.post("/anomaly/studies/{image}/lease", summary="Take a study to work on")
def take_lease(image: str, body: dict = Depends(json_body), user: User = _ANNOTATOR) -> JSONResponse:
    """``{"reader": name, "minutes": 30}``; again, to keep it. 409 while another reader has it."""
    check_image_id(image)
    unknown = sorted(str(key)[:40] for key in body.keys() - {"reader", "minutes"})
    minutes = body.get("minutes", leases.MINUTES)
    words = isinstance(body.get("reader", ""), str)
    if unknown or not words or isinstance(minutes, bool) or not isinstance(minutes, (int, float)):
        raise InvalidRequest('expected {"reader": name, "minutes": number}, got something else')
    app = app_instance()
    find_study(app.datastore(), image, {})
    return answer(leases.as_told(leases.take(app.datastore(), image, _reader(user, body.get("reader")), minutes)))


@router.delete("/anomaly/studies/{image}/lease", summary="Give a study back")
def free_lease(image: str, reader: str = "", user: User = _ANNOTATOR) -> JSONResponse:
    """``{"freed": false}`` where nobody had it. 409 for another reader's."""
    datastore = app_instance().datastore()
    find_study(datastore, check_image_id(image), {})
    return answer({"freed": leases.free(datastore, image, _reader(user, reader))})


def _reader(user: User, said: Any) -> Any:
    """Whoever logged in, else the name that was sent."""
    return user.username if settings.MONAI_LABEL_AUTH_ENABLE and user.username else said


def working(app) -> dict[str, str]:
    """Which images a job is about: ``queued`` or ``running``, by image."""
    return app.jobs.working()
