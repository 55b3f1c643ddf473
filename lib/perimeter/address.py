"""Which of the server's addresses a request is for, wherever the server and its API are mounted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.config import settings


def below_api(scope: Mapping[str, Any]) -> str:
    """The path of a request below ``--root_path`` and ``MONAI_LABEL_API_STR``, such as ``/datastore/image``.

    What lies beside the API (``/static``, ``/docs``) is as it is.
    """
    path = scope["path"].removeprefix(scope.get("root_path") or "")
    prefix = settings.MONAI_LABEL_API_STR.rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path
