"""``/anomaly/studies``: the worklist, from the table of images alone, so that thousands of studies cost no time."""

from __future__ import annotations

from dataclasses import fields

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.endpoints.answers import answer, read_query
from lib.ids import check_image_id
from lib.studies import StudyQuery, find_study, list_studies

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Studies"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
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


def working(app) -> dict[str, str]:
    """Which images a job is about: ``queued`` or ``running``, by image."""
    return app.jobs.working()
