"""Training, scoring and batch inference by name: an unknown name is refused at once.

MONAI Label accepts any name with 200 and starts a sub-process, which then fails where nobody looks. Here the name is
checked against the app first; the work itself stays MONAI Label's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints import batch_infer, scoring, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance

from monailabel_app.errors import UnknownModel

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Tasks"])

_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


@router.post("/train/{model}", summary="Train one model")
def run_training(
    model: str, params: dict | None = None, run_sync: bool = False, enqueue: bool = False, user: User = _ADMIN
) -> Any:
    """Start a training in a process of its own."""
    check_name("trainer", model, app_instance().info()["trainers"])
    return train.run_model(model, params, run_sync, enqueue)


@router.post("/scoring/{method}", summary="Run one scoring method")
def run_scoring(method: str, params: dict | None = None, run_sync: bool = False, user: User = _ANNOTATOR) -> Any:
    """Start a scoring in a process of its own."""
    check_name("scoring method", method, app_instance().info()["scoring"])
    return scoring.run_method(method, params, run_sync)


@router.post("/batch/infer/{model}", summary="Analyse many scans of the datastore")
def run_batch(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict | None = None,
    run_sync: bool = False,
    user: User = _ADMIN,
) -> Any:
    """Start a batch analysis in a process of its own."""
    check_name("model", model, app_instance().info()["models"])
    return batch_infer.run(model, images, params or {}, run_sync)


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises UnknownModel naming what there is."""
    known = list(known)
    if name not in known:
        there_is = ", ".join(known) or "none on this server"
        raise UnknownModel(f"no {what} {name[:80]!r}; available: {there_is}")
