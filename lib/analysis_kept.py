"""One analysis as a client asks for it: made, and what it found noted and kept before it is answered.

What belongs to the scan is kept together or not at all: where something cannot be kept, the answer's file goes too.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.infers import AnomalyInferTask
from lib.infers.anomaly import IMAGES, Progress
from lib.kept_images import are_current, basis_of, keep_images
from lib.scoring.records import record_result
from lib.shared_table import stamp_of
from monailabel_app.errors import AlignmentFailed, BrainNotFound, InvalidVolume, UnreadableVolume

logger = logging.getLogger(__name__)

# What a scan itself is to blame for: noted with it, so that a list of scans says so.
_OF_THE_SCAN = (UnreadableVolume, InvalidVolume, BrainNotFound, AlignmentFailed)


def analyse_and_keep(
    task: AnomalyInferTask,
    request: dict[str, Any],
    datastore: Datastore,
    image_id: str | None,
    tag: str,
    *,
    images: bool,
    as_dicom_seg: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    """Run ``task`` on the file ``request["image"]``, and return what ``AnomalyApp.infer`` does.

    image_id: None for a file that is no image of the datastore, of which nothing is kept. tag: of the label that is
    kept where the request has ``save_label``. images: keep map and reconstruction, too. Raises AnomalyAppError.
    """
    path, stamp, began = str(request["image"]), stamp_of(str(request["image"])), time.monotonic()
    basis = basis_of(task, request, path) if images else ""
    with tempfile.TemporaryDirectory(prefix="anomaly_map_") as folder:
        files = {}
        if images and not are_current(datastore, image_id, basis):
            files = {name: str(Path(folder) / f"{name}.nii.gz") for name in IMAGES}
        request["files"] = files
        try:
            file, result = task(request, progress)
        except _OF_THE_SCAN as error:
            if image_id:
                _record(datastore, image_id, task, request, error, began, path, stamp)
            raise
        answer = {"label": file, "tag": DefaultLabelTag.ORIGINAL.value, "file": file, "params": result}
        try:
            if images:
                keep_images(datastore, image_id, files, basis, request["model"], result, of=stamp)
            if image_id:
                _record(datastore, image_id, task, request, result, began, path, stamp)
            if image_id and _is_true(request.get("save_label")):
                info = {"model": request["model"], "params": result}
                answer |= {"label": datastore.save_label(image_id, file, tag, info, of=stamp), "tag": tag}
            if as_dicom_seg:
                info = request.get("label_info")
                answer["dicom_seg"] = datastore.to_dicom_seg(image_id, file, info, result)
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise
    return answer


def _record(
    datastore: Datastore,
    image: str,
    task: AnomalyInferTask,
    request: Mapping[str, Any],
    result: Mapping[str, Any] | Exception,
    began: float,
    path: str,
    stamp: str,
) -> None:
    """Note what an analysis found; a folder that cannot be written does not spoil it."""
    try:
        record_result(datastore, image, task, request, result, time.monotonic() - began, path, stamp=stamp)
    except OSError as error:
        logger.warning("what an analysis found could not be noted: %s", type(error).__name__)


def _is_true(value: Any) -> bool:
    return value is True or str(value).strip().lower() in {"true", "1", "yes", "on"}
