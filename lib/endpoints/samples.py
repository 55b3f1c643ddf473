"""``/activelearning/{strategy}``: MONAI Label's answer, for the reader who asks.

MONAI Label tells a strategy the ``client_id`` that a client chose for itself, not who is logged in; and it chooses
within its event loop, so that nobody else is answered meanwhile.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints import activelearning
from monailabel.endpoints.user.auth import RBAC, User

router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/activelearning", tags=["ActiveLearning"])

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))


@router.post("/{strategy}", summary="The next study for this reader")
def next_study(strategy: str, params: dict | None = None, user: User = _USER) -> Any:
    """A study that nobody has reviewed and no other reader has now, with ``reason``; empty when none is left."""
    params = dict(params or {})
    if settings.MONAI_LABEL_AUTH_ENABLE:
        params["client_id"] = user.username
    return activelearning.sample(strategy, params, user.username)
