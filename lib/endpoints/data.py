"""MONAI Label's own answers about data, run in a thread instead of the event loop.

Each of them may read a large file or talk to a DICOMweb archive; as ``async def`` they would hold up
everybody.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, Form, Response, UploadFile
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints import datastore as stock
from monailabel.endpoints import info
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from pydantic import TypeAdapter
from starlette.background import BackgroundTask

from lib import leases, review, same_scan
from lib.access.principal import BY_NAME, current
from lib.endpoints.infer import read_params
from lib.errors import InvalidRequest, NotAllowed, UnknownImage
from lib.healthy import contradiction, healthy_scans
from lib.perimeter.body_limit import check_space
from lib.reviewed import is_final
from lib.scoring import evaluate, records
from lib.uploads import received

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Data"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


_INFO = TypeAdapter(dict[str, Any])


@router.get("/info/", summary="What this server offers", response_model=dict[str, Any])
def app_info(user: User = _USER) -> Response:
    """Models, strategies and datastore counts."""
    # As text from here, in a thread: the framework would check it in another and write it in the event loop.
    return Response(_INFO.dump_json(info.app_info()), media_type="application/json")


LONGEST_INFO = 65536
# What this app itself writes into a scan's information: findings, reviews, who works on it, what replaced it.
OWN_KEYS = frozenset(
    {
        records.KEY,
        review.KEY,
        leases.KEY,
        evaluate.KEY,
        same_scan.KEY,
        same_scan.REPLACED_KEY,
        "replaced_id",
        "name",
        "ts",
    }
)


@router.put("/datastore/", deprecated=True, summary="Upload a scan: MONAI Label's former address")
@router.put("/datastore/image", summary="Upload a scan")
def add_image(
    image: str | None = None, params: str = Form("{}"), file: UploadFile = File(...), user: User = _ANNOTATOR
):
    """Store a scan under an id."""
    given = told(params)
    name = os.path.basename((file.filename or "").replace("\\", "/"))
    with received(file) as path:
        stem = name[: -len(path.name.removeprefix("upload"))] if name.lower().endswith(path.name[6:]) else name
        return {"image": app_instance().datastore().add_image(image or stem, str(path), signed(given, user))}


@router.put("/datastore/label", summary="Submit a label")
def save_label(
    image: str,
    params: str = Form("{}"),
    tag: str = DefaultLabelTag.FINAL.value,
    label: UploadFile = File(...),
    user: User = _ANNOTATOR,
):
    """Store a label for a scan, or send it to the archive; an empty final one says that nothing is abnormal.

    ``warnings`` in the answer: what a final label contradicts, and the models that have seen the scan as healthy.
    """
    given, app = brief(params), app_instance()
    tag = tag or DefaultLabelTag.FINAL.value
    with received(label) as path:
        label_id = app.datastore().save_label(image, str(path), tag, signed(given, user))
    answer = {**(app.on_save_label(image, label_id) or {}), "image": image, "label": label_id}
    if is_final(tag):
        warnings = app.final_label_changed(image)
        answer |= {"warnings": warnings} if warnings else {}
    return answer


@router.delete("/datastore/", deprecated=True, summary="Remove a scan: MONAI Label's former address")
@router.delete("/datastore/image", summary="Remove a scan and its labels")
def remove_image(id: str, user: User = _ADMIN):
    """Remove a scan and its labels."""
    app_instance().datastore().remove_image(id)
    return {}


@router.get("/datastore/dataset", summary="Download scans and labels as a ZIP archive")
def dataset(limit_cases: int | None = None, user: User = _ADMIN):
    """Scans with a final label. Raises UnknownImage where there is none, NoSpace where it would fill the disk."""
    if limit_cases is not None and limit_cases < 1:
        raise InvalidRequest(f"expected limit_cases to be a whole number from 1, got {limit_cases}")
    datastore = app_instance().datastore()
    listed = datastore.datalist()
    if not listed:
        raise UnknownImage("there is no scan with a final label to put into an archive")
    files = [Path(file) for case in listed[:limit_cases] for file in case.values()]
    check_space(sum(file.stat().st_size for file in files if file.is_file()), (Path(tempfile.gettempdir()),), copies=1)
    archive = Path(datastore.get_dataset_archive(limit_cases))
    return FileResponse(
        archive, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(archive.unlink, True)
    )


@router.put("/datastore/updatelabelinfo", include_in_schema=False)
def update_label_info_formerly(label: str, tag: str, params: str = Form("{}"), user: User = _ANNOTATOR):
    """MONAI Label's former address of it."""
    return update_label_info(label, tag, params, user)


@router.put("/datastore/label/info", summary="Change a label's information")
def update_label_info(label: str, tag: str, info: str = Form("{}"), user: User = _ANNOTATOR):
    """JSON that is kept beside a label."""
    return app_instance().datastore().update_label_info(label, tag, signed(brief(info), user))


def told(text: str) -> dict[str, Any]:
    """What a client says of a scan. Raises InvalidRequest for what only this server writes: it would be forged."""
    given = brief(text)
    forged = sorted(OWN_KEYS & given.keys())
    if forged:
        raise InvalidRequest(
            f"expected information without {', '.join(forged)}, which this server writes itself (reviews: PUT "
            "/anomaly/reviews; analyses: POST /infer)"
        )
    return given


def brief(text: str) -> dict[str, Any]:
    """What a client says of a scan or a label. Raises InvalidRequest, also for a long text.

    The information of all scans and labels is in one table, which is written anew at every change.
    """
    if len(text) > LONGEST_INFO:
        raise InvalidRequest(f"expected information of at most {LONGEST_INFO} characters, got {len(text)}")
    return read_params(text)


def signed(given: Mapping[str, Any], user: User) -> dict[str, Any]:
    """``given`` with whose request it is."""
    who = current()
    name = who.name if who.how in BY_NAME else user.username
    return {**given, **({"user": name} if name else {})}


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
    app.datastore().update_image_info(image, signed(told(info), user))
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
    algorithm = (check_sum or "").rpartition(":")[0]
    if check_sum and algorithm not in {"", "SHA256", "SHA512", "MD5"}:
        raise InvalidRequest("expected check_sum as SHA256:HEX, SHA512:HEX or MD5:HEX")
    return stock.download_image(image, check_only=True, check_sum=check_sum)


@router.get("/datastore/label", summary="Download a label or an anomaly map")
def get_label(label: str, tag: str, user: User = _USER):
    """The label's file; tag ``anomaly_map`` is the map of the last analysis."""
    return stock.download_label(label, tag)


@router.post("/reload", include_in_schema=False)
def reload(user: User = _ADMIN):
    """Refused: it would leave a second app beside the running one. Changed models are noticed anyway."""
    raise NotAllowed("reloading is switched off: changed models are noticed, else restart")
