"""MONAI Label's own answers about data, run in a thread instead of the event loop.

Each of them may read a large file or talk to a DICOMweb archive; as ``async def`` they would hold up
everybody.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.config import settings
from monailabel.endpoints import activelearning, info, session
from monailabel.endpoints import datastore as stock
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance

from lib.endpoints.infer import read_params
from lib.errors import NotAllowed
from lib.healthy import contradiction, healthy_scans
from lib.reviewed import is_final

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Data"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


@router.get("/info/", summary="What this server offers")
def app_info(user: User = _USER) -> dict[str, Any]:
    """Models, strategies and datastore counts."""
    return info.app_info()


@router.post("/activelearning/{strategy}", summary="The next scan to look at")
def next_sample(strategy: str, params: dict | None = None, user: User = _USER):
    """Id, path and information of the next scan; empty when all are labelled."""
    return activelearning.sample(strategy, params, user.username)


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image", summary="Upload a scan")
def add_image(
    background_tasks: BackgroundTasks,
    image: str | None = None,
    params: str = Form("{}"),
    file: UploadFile = File(...),
    user: User = _ANNOTATOR,
):
    """Store a scan under an id."""
    read_params(params)
    return stock.add_image(background_tasks, image, params, file, user.username)


@router.put("/datastore/label", summary="Submit a label")
def save_label(
    background_tasks: BackgroundTasks,
    image: str,
    params: str = Form("{}"),
    tag: str = DefaultLabelTag.FINAL.value,
    label: UploadFile = File(...),
    user: User = _ANNOTATOR,
):
    """Store a label for a scan, or send it to the archive; an empty final one says that nothing is abnormal.

    ``warnings`` in the answer: what a final label contradicts, and the models that have seen the scan as healthy.
    """
    read_params(params)
    answer = stock.save_label(background_tasks, image, params, tag, label, user.username)
    if is_final(tag or DefaultLabelTag.FINAL.value):
        warnings = app_instance().final_label_changed(image)
        answer |= {"warnings": warnings} if warnings else {}
    return answer


@router.delete("/datastore/label", summary="Remove a label")
def remove_label(id: str, tag: str, user: User = _ADMIN):
    """Remove a label; without its empty final label a scan is not taken as reviewed any more."""
    app = app_instance()
    app.datastore().remove_label(id, tag)
    if is_final(tag):
        app.final_label_changed(id)
    return {}


@router.put("/datastore/image/info", summary="Change a scan's information, or mark it as healthy")
def update_image_info(image: str, info: str = Form("{}"), user: User = _ANNOTATOR):
    """``{"healthy": true}`` offers the scan for training, false keeps it out, null takes either back."""
    app = app_instance()
    changes = read_params(info)
    if user.username:
        changes["user"] = user.username
    app.datastore().update_image_info(image, changes)
    warning = contradiction(app.datastore(), app.conf, image)
    return {"warnings": [warning]} if warning else None


@router.get("/anomaly/healthy", summary="Which scans are taken as healthy, and why")
def healthy(user: User = _ANNOTATOR) -> dict[str, Any]:
    """Counts per reason, what is left out, whether there are enough to train, and the image ids."""
    app = app_instance()
    return healthy_scans(app.datastore(), app.conf).listing()


@router.get("/datastore/image", summary="Download a scan")
def get_image(image: str, user: User = _USER):
    """The scan's file."""
    return stock.download_image(image)


@router.head("/datastore/image", summary="Whether there is such a scan")
def check_image(image: str, check_sum: str | None = None, user: User = _USER):
    """200 or 404."""
    return stock.download_image(image, check_only=True, check_sum=check_sum)


@router.get("/datastore/label", summary="Download a label or an anomaly map")
def get_label(label: str, tag: str, user: User = _USER):
    """The label's file; tag ``anomaly_map`` is the map of the last analysis."""
    return stock.download_label(label, tag)


@router.put("/session/", summary="Upload a scan for this session only")
def create_session(
    background_tasks: BackgroundTasks,
    uncompress: bool = False,
    expiry: int = 0,
    files: list[UploadFile] = File(...),
    user: User = _USER,
):
    """Keep a scan outside the datastore until the session expires."""
    return session.create_session(background_tasks, uncompress, expiry, files)


@router.put("/model/{model}", include_in_schema=False)
@router.delete("/model/{model}", include_in_schema=False)
def change_model(model: str, user: User = _ADMIN):
    """Refused: a model is a folder with recorded hashes, not one uploaded file."""
    raise NotAllowed("models are not changed over the network: put the folder into the app's model/ folder")


@router.post("/reload", include_in_schema=False)
def reload(user: User = _ADMIN):
    """Refused: it would leave a second app beside the running one. Changed models are noticed anyway."""
    raise NotAllowed("reloading is switched off: changed models are noticed, else restart")
