"""``POST /infer/{model}``: MONAI Label's address, answered outside the event loop.

MONAI Label runs the whole analysis inside an ``async def``, so that the server answers nobody until it is
done. Here it runs in a thread; the devices' locks in ``lib.runner`` keep it at one job per device. A client that closes
its connection gives up its place in line. What has begun goes on where its result is kept, and else stops.
"""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.datastore import IMAGE_EXTENSIONS
from lib.endpoints.caller import Caller
from lib.errors import InvalidRequest, UnknownImage
from lib.plans import recorded
from lib.reviewed import tag_of_analysis
from lib.uploads import ending_of, keep

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Infer"])

# Where the scan comes from is said by the address, the uploaded file or the session, never by the parameters.
RESERVED = {"model", "image", "session", "label", "image_path", "files", "description"}


@router.post("/infer/{model}", summary="Find anomalies in an image of the datastore, an upload or a session")
async def run_inference(
    http: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = File(None),
    label: UploadFile = File(None),
    output: ResultType | None = None,
    user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),
):
    """Same parameters and answers as MONAI Label's own, which Slicer, OHIF and the Python client rely on."""
    caller = Caller()
    given = (background_tasks, model, image, session_id, params, file, output)
    return await caller.served(http, _infer, caller, *given)


def _infer(
    caller: Caller,
    background_tasks: BackgroundTasks,
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: UploadFile | None,
    output: ResultType | None,
) -> Any:
    app = app_instance()
    request = {key: value for key, value in read_params(params).items() if key not in RESERVED}
    request["model"] = model
    tag_of_analysis(request)  # before it waits in line, not after
    as_seg = output == ResultType.dicom_seg
    with ExitStack() as stack:
        if session_id:
            image, image_file = "", session_image(app, session_id)
        elif file is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anomaly_upload_"))
            image, image_file = "", store_upload(file, folder)
        elif image:
            request["image"], image_file = image, None
        else:
            raise InvalidRequest("expected an image id, an uploaded file or a session id; got none of them")
        job = stack.enter_context(recorded(app, request, image))
        tell = caller.asking(job.tell, kept=bool(image))
        result = app.infer(request, image_file=image_file, as_dicom_seg=as_seg, progress=tell)
    if as_seg:
        background_tasks.add_task(Path(result["dicom_seg"]).unlink, missing_ok=True)
    return send_response(app.datastore(), result, output, background_tasks)


@router.post("/infer/wsi/{model}", include_in_schema=False)
@router.post("/infer/wsi_v2/{model}", include_in_schema=False)
def run_wsi_inference(model: str, user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))):
    """Refused before a file that came along is kept: MONAI Label keeps it for ever."""
    raise InvalidRequest("this app analyses 3-D head scans, not whole-slide images: use POST /infer/{model}")


# Levels of lists and objects within each other. The framework's JSON ends at 255; what was kept with more could not be
# told to anybody again, nor anything that is listed with it.
DEEPEST = 20


def read_params(text: str | None) -> dict[str, Any]:
    """The form field ``params``. Raises InvalidRequest when it is not a JSON object of finite numbers and Unicode, or
    one of more than DEEPEST levels.

    Python reads NaN, which is no JSON, and halves of letters, which no answer can hold; kept in the datastore or with a
    job, they would be an error in every answer that lists it.
    """
    try:
        params = json.loads(text, parse_constant=_finite, parse_float=_finite) if text else {}
        json.dumps(params, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"expected params as a JSON object, got text that is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            "expected params as a JSON object; got one with a number of thousands of digits, with too many levels, or "
            "with text that is no Unicode"
        ) from error
    if not isinstance(params, dict):
        raise InvalidRequest(f"expected params as a JSON object, got {type(params).__name__}")
    return not_too_deep(params)


def not_too_deep(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` unchanged. Raises InvalidRequest where more than DEEPEST levels are within each other."""
    level: list[Any] = [params]
    for _ in range(DEEPEST):
        held = (value.values() if isinstance(value, dict) else value for value in level)
        level = [item for values in held for item in values if isinstance(item, (dict, list))]
        if not level:
            return params
    raise InvalidRequest(f"expected params of at most {DEEPEST} levels within each other, got more")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidRequest(f"expected finite numbers in params, got {text[:24]}")
    return value


def session_image(app, session_id: str) -> str:
    """File or folder of a session. Raises UnknownImage."""
    session = app.sessions().get_session(session_id) if app.sessions() is not None else None
    if session is None:
        raise UnknownImage(f"no session {session_id[:80]!r}: it may have expired, create one with PUT /session/")
    return session.image


def store_upload(file: UploadFile, folder: str) -> str:
    """An uploaded scan as a file in ``folder``, named after its type only."""
    name = (file.filename or "").lower()
    extension = next((known for known in IMAGE_EXTENSIONS if name.endswith(known)), None)
    return str(keep(file, Path(folder) / f"upload{extension or ending_of(name, IMAGE_EXTENSIONS[0])}"))
