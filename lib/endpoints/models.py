"""``/anomaly/models``: the models of this server with what there is to choose, and their cards."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, PlainTextResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.configs import METHODS
from lib.configs.base import site_calibration, verdict
from lib.endpoints.answers import NO_STORE, address, answer
from lib.errors import UnknownImage
from lib.infers import AnomalyInferTask
from lib.options import SMOOTHING
from lib.studies import default_models, model_task, own_models
from monailabel_app.weights.measured_file import read_measured

logger = logging.getLogger(__name__)

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Models"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
CARD, _CALIBRATION = "card.md", "calibration.json"


@router.get("/anomaly/models", summary="Models with their options and limits")
@router.get("/anomaly/models/", include_in_schema=False)
def models(user: User = _USER) -> JSONResponse:
    """In the order they are offered. points: thresholds of the model's own calibration, by score and smoothing."""
    tasks = app_instance().tasks()
    defaults = default_models(tasks)
    return answer([_model(name, task, defaults) for name, task in own_models(tasks).items()])


@router.get("/anomaly/models/{model}/card", summary="A model's card")
def card(model: str, user: User = _USER) -> PlainTextResponse:
    """What it is, what it was measured to do and not to do, as Markdown."""
    task = model_task(app_instance().tasks(), model)
    try:
        text = (task.entry.folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownImage(f"the model {model[:80]!r} has no card: write it with main.py weights cards") from error
    return PlainTextResponse(text, media_type="text/markdown; charset=utf-8", headers=NO_STORE)


def _model(name: str, task: AnomalyInferTask, defaults: dict[str, str]) -> dict[str, Any]:
    entry = task.entry
    method = METHODS[entry.method]
    default_for = [sequence for sequence, model in defaults.items() if model == name]
    return {
        "name": name,
        "title": str(entry.config.get("description") or method.title),
        "method": entry.method,
        "modality": entry.modality,
        "default": bool(default_for),
        "default_for": default_for,
        "description": method.describe(entry),
        "verdict": verdict(entry),
        "beats_baselines": _beats_baselines(entry.folder),
        "training_data": entry.training_data,
        "version": entry.version,
        "id": entry.id,
        "hash": entry.hash,
        "calibration": site_calibration(entry) or "shipped",
        "scores": list(method.scores_of(entry)),
        "options": task.config(),
        "points": _points(entry.folder / _CALIBRATION),
        "card": address("models", name, "card") if (entry.folder / CARD).is_file() else None,
    }


def _beats_baselines(folder: Path) -> bool | None:
    """Whether the model was shown to beat the baselines on every sequence it was measured on; None where it was not.

    None also for a baseline itself.
    """
    measured = read_measured(folder) or {}
    sequences = () if measured.get("baseline") else measured.get("sequences") or ()
    answers = [found.get("answer") for found in sequences if isinstance(found, Mapping)]
    return all(answer == "yes" for answer in answers) if answers else None


def _points(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
    except OSError:
        return {}
    return _read_points(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _read_points(path: Path, modified: int, size: int) -> dict[str, Any]:
    """``{score: {smoothing: {point: threshold, ...}}}``; the default of each first. Not to be changed."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return {
            score: {
                smoothing: {
                    point: {key: value.get(key) for key in ("threshold", "target_fpr", "measured_fpr", "bound_ml")}
                    for point, value in entry["points"][smoothing].items()
                }
                for smoothing in SMOOTHING
                if smoothing in entry["points"]
            }
            for score, entry in scores.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("the thresholds of a model cannot be read (%s)", type(error).__name__)
        return {}
