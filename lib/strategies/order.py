"""The next unlabelled scan: in the order of the ids, or at random."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class First(Strategy):
    """The first unlabelled scan in the order of the ids, so that a folder is worked through."""

    def __init__(self):
        super().__init__("First unlabelled scan, in the order of the ids")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = sorted(datastore.get_unlabeled_images())
        return {"id": images[0]} if images else None


class Random(Strategy):
    """A random unlabelled scan; the longer ago it was last handed out, the likelier.

    MONAI Label's own fails when every scan was handed out within the same second.
    """

    def __init__(self, seed: int | None = None):
        super().__init__("Random unlabelled scan")
        self._generator = np.random.default_rng(seed)

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        name = request.get("strategy") or "random"
        now = int(time.time())
        ages = [now - _last_given(datastore.get_image_info(image), name) for image in images]
        weights = np.maximum(np.asarray(ages, dtype=np.float64), 1.0)
        index = int(self._generator.choice(len(images), p=weights / weights.sum()))
        return {"id": images[index], "weight": int(weights[index])}


def _last_given(info: dict[str, Any], strategy: str) -> int:
    record = (info.get("strategy") or {}).get(strategy) or {}
    return int(record.get("ts") or 0)
