"""``/anomaly/results/{image}``: what a model found in a scan, from the analysis at hand; no network ever runs here.

Another operating point, threshold, smoothing or smallest volume in the query is answered from the same analysis. Where
there is none, the answer is 404 and says how to ask for it. A few answers are made at a time: each holds several arrays
as large as the scan.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.analyses import Analysed, model_of
from lib.endpoints.answers import NO_STORE, SETTINGS, address, answer, check_settings, read_query
from lib.errors import UnknownImage
from lib.ids import check_image_id
from lib.recent import Recent
from lib.review import review_of
from lib.scoring.records import records_of
from lib.shared_table import stamp_of
from lib.studies import model_task, own_models
from monailabel_app.calibration.bands import BAND_SHARES, BANDS, COLOURS, band_edges, band_map
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import InvalidSettings
from monailabel_app.io import images
from monailabel_app.pipelines.manifest import manifest_of
from monailabel_app.pipelines.study_report import study_report
from monailabel_app.types import Volume

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Results"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
KINDS = ("anomaly_map", "reconstruction", "uncertainty_map", "mask", "bands", "brain_mask", "scan")
FORMATS = (".nii.gz", ".nii", ".nrrd")
_REPORTS = ("report.html", "report.json", "result.json", "manifest.json")
# A page without scripts, whose style and pictures are inside it.
_PAGE = {
    **NO_STORE,
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LABELS = frozenset({"mask", "bands", "brain_mask"})
_WINDOW = (0.5, 99.5)  # percent of the brain's voxels
AT_ONCE = 3
_TURNS = threading.BoundedSemaphore(AT_ONCE)
# A viewer asks for a result and then for its images at once; later it asks for others.
_RECENT: Recent[Analysed] = Recent(entries=2, seconds=15.0)


@router.get("/anomaly/results/{image}", summary="What a model found in a scan")
def result(request: Request, image: str, user: User = _USER) -> JSONResponse:
    """Scores, lesions, thresholds of its calibration, bands and addresses of the images.

    Query: model (default: of the last analysis) and the settings of an analysis. 404 where there is none at hand.
    """
    model, given = _asked(request, image)
    with _TURNS:
        return answer(_describe(image, model, given))


@router.get("/anomaly/results/{image}/{name}", summary="An image of a result, or a report")
def result_file(request: Request, background: BackgroundTasks, image: str, name: str, user: User = _USER) -> Response:
    """``{kind}.nii.gz``, ``.nii`` or ``.nrrd`` on the scan's own grid; report.html, report.json, result.json.

    manifest.json: what the result depends on, and enough to make it again (``main.py reproduce``). kind: anomaly_map,
    reconstruction, uncertainty_map, mask, bands, brain_mask, scan (which needs no analysis).
    """
    model, given = _asked(request, image)
    if name in _REPORTS:
        with _TURNS:
            return _report(image, model, given, name)
    kind, suffix = split_name(name)
    folder = Path(tempfile.mkdtemp(prefix="anomaly_result_"))
    background.add_task(shutil.rmtree, folder, ignore_errors=True)
    path = folder / name
    try:
        with _TURNS:
            path = _scan(image, path) if kind == "scan" else _image(image, model, given, kind, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(
        path, media_type="application/octet-stream", filename=f"{kind}{suffix}", headers=NO_STORE, background=background
    )


def split_name(name: str) -> tuple[str, str]:
    """``mask.nii.gz`` as kind and suffix. Raises UnknownImage naming what there is."""
    for suffix in FORMATS:
        kind = name.removesuffix(suffix)
        if name.endswith(suffix) and kind in KINDS:
            return kind, suffix
    raise UnknownImage(
        f"expected one of {', '.join(KINDS)} with {', '.join(FORMATS)}, or {', '.join(_REPORTS)}; got {name[:80]!r}"
    )


def display_window(volume: Volume, brain_mask: np.ndarray) -> list[float]:
    """Grey values [lo, hi] to show black and white: the brain's own range without its extremes."""
    values = volume.data[0][brain_mask]
    if values.size == 0:
        values = volume.data[0]
    low, high = (float(v) for v in np.percentile(values, _WINDOW))
    return [low, high if high > low else low + 1.0]


def _asked(request: Request, image: str) -> tuple[str | None, dict[str, Any]]:
    check_image_id(image)
    query = read_query(request, ("model", *SETTINGS))
    model = query.pop("model", None)
    given = check_settings(query)
    # Fetched before its turn among the answers that are made: an archive may take long, or never answer.
    app_instance().datastore().get_image_uri(image)
    return model, given


def _found(image: str, model: str | None, given: Mapping[str, Any], images: bool = False) -> Analysed:
    """Of the analysis at hand. Raises NotAnalysed, UnknownImage, UnknownModel, InvalidSettings."""
    app = app_instance()
    datastore, tasks = app.datastore(), own_models(app.tasks())
    # Fetched first where it has to be: the model and the stamp follow from what is known then.
    stamp = stamp_of(datastore.get_image_uri(image))
    task = model_task(tasks, model or model_of(image, datastore, tasks))
    about = (image, stamp, task, task.calibration(), tuple(sorted(given.items())))
    with_images = _RECENT.peek((*about, True))
    if with_images is not None:
        return with_images
    return _RECENT.get((*about, images), lambda: app.analysed(image, task.entry.name, given, images=images))


def _describe(image: str, model: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    # First: where the scan is replaced in between, a review of this answer is refused.
    scan = app_instance().datastore().scan_name(image)
    found = _found(image, model, given)
    name, finding = found.task.entry.name, found.finding
    info = app_instance().datastore().get_image_info(found.image) or {}
    smoothing, score = str(finding.settings["smoothing"]), str(finding.settings["score"])
    calibration = found.model.calibration.score(score)
    bands = _bands(found)
    return {
        "image": found.image,
        "scan": scan,
        "model": name,
        "finding": finding.to_json(),
        "files": _addresses(found, given, bool(bands)),
        "calibration": {
            "id": (finding.calibration or {}).get("id"),
            "score": score,
            "smoothing": smoothing,
            "points": {point: value.threshold for point, value in calibration.points[smoothing].items()},
            "tails": {"shares": TAIL_SHARES, "values": calibration.tails.get(smoothing, ())},
            "scan_scores": calibration.scan_scores[smoothing],
        },
        "bands": bands,
        "window": display_window(found.volume, finding.brain_mask),
        "affine": finding.affine,
        "review": review_of(info),
        "record": records_of(info).get(name),
    }


def _addresses(found: Analysed, given: Mapping[str, Any], bands: bool) -> dict[str, str]:
    """Of the images there are; those of the same settings as this answer."""
    finding, query = found.finding, {"model": found.task.entry.name, **given}
    there = {
        "anomaly_map": True,
        "reconstruction": finding.reconstructs,
        "uncertainty_map": bool(finding.uncertainty),
        "mask": True,
        "bands": bands,
        "brain_mask": True,
    }
    files = {kind: address("results", found.image, f"{kind}.nii.gz", query=query) for kind in there if there[kind]}
    reports = {name.replace(".", "_"): address("results", found.image, name, query=query) for name in _REPORTS[:2]}
    return {**files, "scan": address("results", found.image, "scan.nii.gz"), **reports}


def _bands(found: Analysed) -> list[dict[str, Any]]:
    """From low to high; none for a calibration of an earlier version, which has no table of healthy values."""
    try:
        edges = _edges(found)
    except InvalidSettings:
        return []
    return [
        {"name": name, "share": share, "value": value, "colour": list(COLOURS[name])}
        for name, share, value in zip(BANDS, BAND_SHARES, edges, strict=True)
    ]


def _edges(found: Analysed) -> tuple[float, ...]:
    kept = found.finding.settings
    return tuple(band_edges(found.model.calibration.score(str(kept["score"])), str(kept["smoothing"])))


def _image(image: str, model: str | None, given: Mapping[str, Any], kind: str, path: Path) -> Path:
    found = _found(image, model, given, images=kind in {"reconstruction", "uncertainty_map"})
    if kind == "bands":
        finding = found.finding
        smallest = float(finding.settings["min_volume_ml"])
        values = band_map(finding.anomaly_map, _edges(found), found.volume.spacing_mm, finding.brain_mask, smallest)
    else:
        values = getattr(found.finding, kind)
    if values is None:
        why = {
            "reconstruction": "its method makes no image of a healthy brain",
            "uncertainty_map": "uncertainty was not asked for: send uncertainty=on",
        }
        raise UnknownImage(f"this result of {found.task.entry.name} has no {kind}: {why.get(kind, 'it was not made')}")
    write = images.write_labelmap if kind in _LABELS else images.write_map
    write(path, values, found.volume)
    return path


def _scan(image: str, path: Path) -> Path:
    """The scan's own file where it has the wanted format, else a copy in it."""
    source = Path(app_instance().datastore().get_image_uri(image))
    if source.is_file() and source.name.endswith(path.name.removeprefix("scan")):
        return source
    volume = images.read_volume(source, slices=True)
    images.write_map(path, volume.data[0], volume)
    return path


def _report(image: str, model: str | None, given: Mapping[str, Any], name: str) -> Response:
    """The result as JSON, or the study report, with the review as it is now."""
    if name == "result.json":
        return answer(_describe(image, model, given))
    found = _found(image, model, given, images=name.endswith(".html"))
    if name == "manifest.json":
        return answer(manifest_of(found.finding))
    info = app_instance().datastore().get_image_info(image) or {}
    review = review_of(info)
    if review is not None and review.get("model") not in {None, found.task.entry.name}:
        # Decisions about what another model found.
        review = None
    report = study_report(found.volume, found.finding, found.model, image_id=image, review=review)
    if name == "report.json":
        return answer(report.json())
    return HTMLResponse(report.html(), headers=_PAGE)
