"""``/anomaly/dicom/...``: what was found on a DICOM series, as DICOM objects, to look at or into the archive."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from pydantic import BaseModel, Field, ValidationError

from lib.dicom_results import OBJECTS, SEGMENTATION, DicomObject, check_objects, map_window, write_objects
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.endpoints.answers import json_body
from lib.errors import InvalidRequest
from lib.ids import check_uid
from monailabel_app.io.dicom_sr import summary_of
from monailabel_app.types import Finding

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["DICOM"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


class Wanted(BaseModel):
    """What to store: of which model, with which settings (those of ``/infer``), which objects (all by default)."""

    model: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    objects: list[str] | None = None


@router.get("/anomaly/dicom/{image}/{kind}.dcm", summary="A finding as a DICOM object")
def dicom_object(request: Request, image: str, kind: str, model: str | None = None, user: User = _USER):
    """Segmentation, parametric map or report of the analysis at hand; the network does not run.

    404 where there is no analysis yet, and for the segmentation of a finding without lesions; 400 where the images
    are no DICOM series.
    """
    if kind not in OBJECTS:
        raise InvalidRequest(f"expected one of {', '.join(OBJECTS)}, got {kind[:40]!r}")
    params = {key: value for key, value in request.query_params.items() if key != "model"}
    _, (written,) = _write(image, model, params, (kind,))
    return FileResponse(
        written.path,
        media_type="application/dicom",
        filename=f"{kind}.dcm",
        headers={"Cache-Control": "no-store"},
    )


@router.post("/anomaly/dicom/{image}", summary="Store a finding in the DICOM archive")
def store_in_archive(image: str, body: dict = Depends(json_body), user: User = _ANNOTATOR) -> dict[str, Any]:
    """``{model, params, objects}``: write the objects of the analysis at hand and send them to the archive (STOW-RS).

    502 with the reason where the archive does not answer or does not take them. Sending again is safe.
    """
    try:
        wanted = Wanted.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest('expected {"model": name, "params": {...}, "objects": [...]}, got other types') from error
    kinds = check_objects(wanted.objects)
    finding, written = _write(image, wanted.model, wanted.params, kinds)
    _archive().store([item.path for item in written])
    answer: dict[str, Any] = {"stored": [item.identity() for item in written], "summary": summary_of(finding)}
    if SEGMENTATION in kinds and not finding.lesions:
        answer["left_out"] = [{"object": SEGMENTATION, "reason": "nothing was found; the report says so"}]
    return answer


def _write(
    image: str, model: str | None, params: dict[str, Any], kinds: tuple[str, ...]
) -> tuple[Finding, list[DicomObject]]:
    datastore = _archive()
    check_uid(image)
    analysed = app_instance().analysed(image, model, params)
    finding, used = analysed.finding, analysed.finding.settings
    window = map_window(analysed.model.calibration.score(str(used["score"])), str(used["smoothing"]))
    series = datastore.series_folder(image)
    return finding, write_objects(finding, series, datastore.results_folder(), kinds, window)


def _archive() -> AnomalyDICOMWebDatastore:
    """The datastore. Raises InvalidRequest where it is a folder of files."""
    datastore = app_instance().datastore()
    if not isinstance(datastore, AnomalyDICOMWebDatastore):
        raise InvalidRequest(
            "expected an image of a DICOMweb archive; this server serves a folder of NIfTI or NRRD files, which have "
            "no DICOM study to belong to: start it with --studies http://ARCHIVE/dicom-web, or fetch results as NIfTI"
        )
    return datastore
