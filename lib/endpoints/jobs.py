"""``/anomaly/jobs``: analyses that are submitted and left alone, and everything else that takes long.

Requests to /infer are listed as jobs, too, and so are MONAI Label's trainings, scorings and batches.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib import background
from lib.analyses import model_of
from lib.endpoints.answers import json_body
from lib.endpoints.infer import RESERVED
from lib.errors import InvalidRequest
from lib.ids import check_image_id
from lib.jobs import STATES
from lib.plans import MOST_PARAMS

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Jobs"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_NOT_STORED = {"Cache-Control": "no-store"}


@router.post("/anomaly/jobs", status_code=202, summary="Have an image of the datastore analysed")
def submit_job(response: Response, request: dict[str, Any] = Depends(json_body), user: User = _USER) -> dict[str, Any]:
    """``{"image": id, "model": name, "params": {...}}``; without a model, the default one for the scan's sequence."""
    response.headers.update(_NOT_STORED)
    app = app_instance()
    image, model, params = request.get("image"), request.get("model"), request.get("params")
    if not isinstance(image, str) or not image:
        raise InvalidRequest('expected {"image": id of a stored image}; for a file of your own use POST /infer/{model}')
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("expected model as the name of a model")
    params = {} if params is None else params
    if not isinstance(params, dict) or len(json.dumps(params)) > MOST_PARAMS:
        raise InvalidRequest(f"expected params as a JSON object of finite values, at most {MOST_PARAMS} characters")
    params = {key: value for key, value in params.items() if key not in RESERVED}
    model = model or model_of(check_image_id(image), app.datastore(), app.tasks())
    return app.jobs.json(app.jobs.submit(image, model, params))


@router.get("/anomaly/jobs", summary="What is being done, was done, and waits")
def list_jobs(
    response: Response, image: str | None = None, state: str | None = None, user: User = _USER
) -> dict[str, Any]:
    """``jobs``, the newest first, and how many are ``waiting``. state: one or more of the states, with commas."""
    response.headers.update(_NOT_STORED)
    states = tuple(part.strip() for part in (state or "").split(",") if part.strip())
    unknown = [part for part in states if part not in STATES]
    if unknown:
        raise InvalidRequest(f"expected state out of {', '.join(STATES)}; got {unknown[0][:40]!r}")
    app = app_instance()
    others = background.listing(app)
    listed = app.jobs.listing(image, states)
    listed += [job for job in others if image is None and (not states or job["state"] in states)]
    waiting = app.jobs.waiting() + sum(job["state"] == "queued" for job in others)
    return {"jobs": sorted(listed, key=lambda job: job["created"] or "", reverse=True), "waiting": waiting}


@router.get("/anomaly/jobs/{job_id}", summary="How far one job is")
def get_job(response: Response, job_id: str, user: User = _USER) -> dict[str, Any]:
    """One job."""
    response.headers.update(_NOT_STORED)
    app = app_instance()
    return background.get(app, job_id) if background.find(job_id) else app.jobs.get(job_id)


@router.delete("/anomaly/jobs/{job_id}", summary="Cancel a job")
def cancel_job(response: Response, job_id: str, user: User = _USER) -> dict[str, Any]:
    """At once while it waits; while it runs, when it next tells its progress. Training and the like are stopped."""
    response.headers.update(_NOT_STORED)
    app = app_instance()
    found = background.find(job_id)
    if found is None:
        return app.jobs.cancel(job_id)
    role = background.role_to_stop(found[0])
    # Also without Keycloak: MONAI Label's own check looks at roles only with it.
    if role not in user.roles:
        raise HTTPException(status_code=403, detail=f'Role "{role}" is required to perform this action')
    background.cancel(job_id)
    return background.get(app, job_id)
