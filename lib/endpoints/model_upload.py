"""``PUT /model/{model}``: a model folder of this app as an archive, and nothing else.

MONAI Label takes any file from anybody who may draw labels, and loads it with pickle at the next analysis.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib import audit, catalogue
from lib.access.principal import ADMIN, current
from lib.errors import InvalidRequest, NotAllowed
from lib.perimeter.body_limit import Limits, check_space
from lib.unpacking import Entry, UnpackLimits, entries_of, unpack
from lib.uploads import received
from monailabel_app.errors import AnomalyAppError
from monailabel_app.weights.version_layout import check_name

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Model"])

_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@router.put("/model/{model}", summary="Install a model folder (.zip or .tar.gz) as a new version")
def upload_model(
    model: str, file: UploadFile = File(...), promote: bool | None = None, user: User = _ADMIN
) -> dict[str, Any]:
    """The folder of a model as this app writes it: config.yaml, safetensors, calibration, checksums.

    ``promote``: whether it serves at once; without it, only where no model of that name does. The answer names the
    version; ``python main.py models promote`` and ``rollback`` change what serves. ``note``: that the server was
    started with a list of models without this one, where that is so.
    """
    if current().role != ADMIN:
        raise NotAllowed("installing a model is for administrators")
    try:
        installed = install(model, file, promote)
    except AnomalyAppError:
        audit.note("model_uploaded", "refused")
        raise
    audit.note("model_uploaded", model=installed["model"], version=installed["version"], hash=installed["hash"])
    return installed


@router.delete("/model/{model}", include_in_schema=False)
def remove_model(model: str, user: User = _ADMIN):
    """Refused: what was in use belongs to results that were given."""
    raise NotAllowed("models are not removed over the network: python main.py models remove NAME VERSION")


def install(name: str, file: UploadFile, promote: bool | None) -> dict[str, Any]:
    """Unpack, check, publish. Raises AnomalyAppError."""
    from monailabel_app.pipelines.uploaded_model import check_names, publish_upload

    check_name(name)
    if not (file.filename or "").lower().endswith(_ARCHIVES):
        raise InvalidRequest(
            f"expected a model folder as {', '.join(_ARCHIVES)}, got another kind of file: single files of weights "
            "(.pt, .ts, pickles) are not taken, as they can hold programs"
        )
    limits = UnpackLimits(entries=24, total=Limits.of(settings.MONAI_LABEL_APP_CONF or {}).upload, depth=2)
    with received(file, ".zip") as archive, tempfile.TemporaryDirectory(prefix="anomaly_model_") as temporary:
        entries = entries_of(archive, limits)
        top = _only_folder(entries)
        check_names([entry.name.removeprefix(top) for entry in entries])
        check_space(sum(entry.size for entry in entries), (Path(temporary), Path(settings.MONAI_LABEL_APP_DIR)))
        written = unpack(archive, Path(temporary), limits)
        # Named after the model, for messages that name it.
        folder = written[0].parent.rename(Path(temporary) / f".{name}") if top else Path(temporary)
        version = publish_upload(Path(settings.MONAI_LABEL_APP_DIR), name, folder, promote=promote)
    installed = {"model": name, "version": version.version, "hash": version.hash, "serving": version.serving}
    note = catalogue.not_offered(name, (settings.MONAI_LABEL_APP_CONF or {}).get("models"))
    return {**installed, **({"note": note} if note else {})}


def _only_folder(entries: list[Entry]) -> str:
    """``name/`` where everything lies in one folder, else nothing."""
    tops = {entry.name.partition("/")[0] + "/" for entry in entries if "/" in entry.name}
    return tops.pop() if len(tops) == 1 and all("/" in entry.name for entry in entries) else ""
