"""``/anomaly/reviews``: what readers decided, kept as it comes; a finished review becomes the scan's final label."""

from __future__ import annotations

import csv
import io
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib import leases
from lib.access.principal import BY_NAME, current
from lib.endpoints.answers import NO_STORE, answer, check_settings, json_body, read_query
from lib.errors import InvalidRequest, NotAllowed, ScanReplaced, UnknownImage
from lib.ids import check_image_id
from lib.review import (
    COLUMNS,
    KEY,
    ReviewRequest,
    draft_entry,
    feedback_rows,
    final_entry,
    read_review,
    review_of,
    settle,
)
from lib.reviewed import FINAL
from lib.scoring.base import keep
from lib.shared_table import stamp_of
from lib.studies import model_task
from monailabel_app.errors import AnomalyAppError
from monailabel_app.io import images

logger = logging.getLogger(__name__)

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Reviews"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_LABELS = [{"name": "anomaly", "idx": 1}]
# A review is finished by a label and a record of it: one at a time for an image, or the two could be of two readers.
_FINISHING = tuple(threading.Lock() for _ in range(32))


@router.put("/anomaly/reviews/{image}", summary="Keep a review as a draft, or finish it")
def put_review(image: str, body: dict = Depends(json_body), user: User = _ANNOTATOR) -> JSONResponse:
    """``{model, params, reader, comment, final, lesions: [{peak_voxel, decision, comment}], rest, scan}``.

    final=false keeps a draft. final=true writes the accepted lesions as the label ``final``, an empty one where none
    is; ``warnings`` in the answer says what that contradicts. scan: that of the result that was looked at. 409 while
    another reader holds the study, and where another scan was uploaded under the id since.
    """
    check_image_id(image)
    review = read_review(body)
    if settings.MONAI_LABEL_AUTH_ENABLE and user.username:
        review = review.model_copy(update={"reader": user.username})
    if review.reader:
        leases.reader_name(review.reader)
    app = app_instance()
    datastore = app.datastore()
    given = check_settings(review.params)
    model_task(app.tasks(), review.model).read(given)
    stamp = stamp_of(datastore.get_image_uri(image))
    if review.scan and review.scan != datastore.scan_name(image):
        raise ScanReplaced(
            f"another scan was uploaded under the id {image[:80]!r} since this one was opened: open it again"
        )
    leases.check(datastore.get_image_info(image) or {}, review.reader)
    with _FINISHING[hash(image) % len(_FINISHING)], _writable():
        if not review.final:
            keep(datastore, image, KEY, {"draft": {**draft_entry(review), **_account()}}, of=stamp)
            warnings = []
        else:
            warnings = _finish(app, image, review, given, stamp)
    kept = review_of(datastore.get_image_info(image) or {})
    return answer({**kept, **({"warnings": warnings} if warnings else {})})


@router.get("/anomaly/reviews", include_in_schema=False)
@router.get("/anomaly/reviews/", summary="All feedback")
def feedback(request: Request, user: User = _USER) -> Response:
    """One row per lesion. format: json or csv. drafts: false leaves out what is not finished."""
    query = read_query(request, ("format", "drafts"))
    kind, drafts = query.get("format", "json"), query.get("drafts", "true")
    if kind not in {"json", "csv"} or drafts not in {"true", "false"}:
        raise InvalidRequest("expected format=json or format=csv, and drafts=true or drafts=false")
    entries = app_instance().datastore().entries()
    rows = [row for image in sorted(entries) for row in feedback_rows(image, entries[image][0], drafts == "true")]
    if kind == "json":
        return answer({"columns": COLUMNS, "rows": rows})
    headers = {**NO_STORE, "Content-Disposition": 'attachment; filename="feedback.csv"'}
    return Response(as_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/anomaly/reviews/{image}", summary="The review of a scan")
def get_review(image: str, user: User = _USER) -> JSONResponse:
    """The draft to go on with, else the finished one; 404 where there is none."""
    return answer(_review(image))


@router.delete("/anomaly/reviews/{image}", summary="Discard the draft of a review")
def discard_draft(image: str, reader: str = "", user: User = _ANNOTATOR) -> JSONResponse:
    """A finished review and its label stay. 404 where there is no draft."""
    if _review(image).get("final"):
        raise UnknownImage("there is no draft to discard: the review is finished")
    datastore = app_instance().datastore()
    leases.check(datastore.get_image_info(image) or {}, user.username if settings.MONAI_LABEL_AUTH_ENABLE else reader)
    with _writable():
        keep(datastore, image, KEY, {"draft": None})
    return answer(review_of(datastore.get_image_info(image) or {}) or {})


def as_csv(rows: list[Mapping[str, Any]]) -> str:
    """For spreadsheets, which take a text that begins like a formula for one: it gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in COLUMNS])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value


def _finish(app, image: str, review: ReviewRequest, given: Mapping[str, Any], stamp: str) -> list[str]:
    """Write the final label and what it was made of. Returns what there is to say about it.

    stamp: of the scan's file before it is looked at. Raises UnknownImage where another one replaces it meanwhile.
    """
    datastore = app.datastore()
    found = app.analysed(image, review.model, given)
    verdict = settle(found.finding, review)
    entry = {**final_entry(review, found.finding, verdict), **_account()}
    former = (datastore.get_label_info(image, FINAL) or {}).get("SeriesInstanceUID")
    info = {
        "label_info": _LABELS,
        "model": {"id": found.finding.model_id, "hash": found.finding.model_hash},
        "reader": review.reader,
        "params": {key: entry[key] for key in ("settings", "threshold", "calibration")},
    }
    with tempfile.TemporaryDirectory(prefix="anomaly_review_") as folder:
        file = Path(folder) / "final.nii.gz"
        images.write_labelmap(file, verdict.accepted, found.volume)
        # One change: after a kill there are both, or neither and the draft of before.
        said = {KEY: {"draft": None, "final": entry}}
        datastore.save_label(image, str(file), FINAL, info, of=stamp, said=said)
    warnings = list(app.final_label_changed(image))
    if review.reader:
        with suppress(AnomalyAppError):
            # Taken by another reader at this moment: the review is finished all the same.
            leases.free(datastore, image, review.reader)
    if former:
        warnings.append("the segmentation of the former review stays in the archive: remove it there")
    return warnings


def _account() -> dict[str, str]:
    """Whose token or account it was: the reader's name is what a client writes, and a token may be of several."""
    who = current()
    return {"account": who.name} if who.how in BY_NAME else {}


def _review(image: str) -> dict[str, Any]:
    info = app_instance().datastore().get_image_info(check_image_id(image)) or {}
    found = review_of(info)
    if found is None:
        raise UnknownImage(f"no review of image {image[:80]!r} yet: send one with PUT /anomaly/reviews/{{image}}")
    return found


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NotAllowed("the review cannot be kept: this server may not write into the studies folder") from error
