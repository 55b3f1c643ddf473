"""The images of the last analysis of a scan, kept beside its labels under tags of their own.

Any client of MONAI Label fetches them with the call it has for labels: ``anomaly_map``, ``reconstruction`` and, where
uncertainty was asked for, ``uncertainty_map``. They all belong to one analysis: what a newer one has not made is
removed. Moving a threshold changes none of them, so that nothing is written anew for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException

from lib.errors import UnknownImage
from lib.infers import AnomalyInferTask
from lib.infers.anomaly import IMAGES
from lib.shared_table import stamp_of
from monailabel_app.errors import AnomalyAppError, CorruptModel
from monailabel_app.types import to_json
from monailabel_app.weights.model_folder import result_hash

logger = logging.getLogger(__name__)

# Settings that draw other borders in the same images.
_ONLY_BORDERS = frozenset({"operating_point", "threshold", "min_volume_ml", "gate"})
_TOLD = ("anomaly_score", "p_value", "threshold", "model", "settings", "calibration")


def basis_of(task: AnomalyInferTask, request: Mapping[str, Any], path: str) -> str:
    """A short name of all that the images of a request depend on; empty where that cannot be told.

    Raises InvalidSettings for a request that cannot be read.
    """
    stamp = stamp_of(path)
    values = {key: value for key, value in task.read(request).items() if key not in _ONLY_BORDERS}
    try:
        parts = [stamp, result_hash(task.entry.folder), task.calibration(), to_json(values)]
    except CorruptModel:
        return ""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24] if stamp else ""


def are_current(datastore: Datastore, image: str, basis: str) -> bool:
    """Whether the images that are kept are those of this basis."""
    held = datastore.get_label_info(image, IMAGES[0]) or {}
    path = datastore.get_label_uri(image, IMAGES[0]) if held else ""
    return bool(basis) and held.get("basis") == basis and bool(path) and Path(path).is_file()


def keep_images(
    datastore: Datastore,
    image: str,
    files: Mapping[str, str],
    basis: str,
    model: str,
    result: dict[str, Any],
    *,
    of: str = "",
) -> None:
    """Keep the images in ``files`` (by tag; those that were made), or with none what is there, for a result.

    of: the stamp of the scan's file that was analysed. A folder that cannot be written, and a scan that was replaced
    meanwhile, add a warning to the result and do not spoil it.
    """
    info = {"model": model, "basis": basis, "params": {key: result.get(key) for key in _TOLD}}
    try:
        held = datastore.get_labels_by_image_id(image)
        made = [tag for tag, file in files.items() if Path(file).is_file()]
        for tag in made:
            datastore.save_label(image, files[tag], tag, dict(info), of=of)
        for tag in IMAGES:
            if not files and tag in held:
                datastore.update_label_info(image, tag, dict(info))
            elif files and tag in held and tag not in made:
                # Of an earlier analysis: beside this one's map it would be taken for its own.
                datastore.remove_label(image, tag)
    except UnknownImage:
        result["warnings"].append("the anomaly map was not kept: the scan was replaced while it was analysed")
    except (OSError, AnomalyAppError, MONAILabelException) as error:
        logger.warning("the images of an analysis could not be kept: %s", type(error).__name__)
        result["warnings"].append("the anomaly map could not be kept: the studies folder cannot be written")
