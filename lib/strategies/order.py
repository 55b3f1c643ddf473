"""The next unreviewed scan: in the order of the ids, or at random."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.strategies.worklist import Infos, WorklistStrategy


class First(WorklistStrategy):
    """The first unreviewed scan in the order of the ids, so that a folder is worked through."""

    def __init__(self):
        super().__init__("First unreviewed scan, in the order of the ids")

    def choose(self, request: Mapping[str, Any], studies: Sequence[str], infos: Infos) -> dict[str, Any] | None:
        return {"id": studies[0], "reason": f"first of {len(studies)} unreviewed scans by id"}


class Random(WorklistStrategy):
    """A random unreviewed scan; the longer ago it was last handed out, the likelier.

    MONAI Label's own fails when every scan was handed out within the same second.
    """

    def __init__(self, seed: int | None = None):
        super().__init__("Random unreviewed scan")
        self._generator = np.random.default_rng(seed)

    def choose(self, request: Mapping[str, Any], studies: Sequence[str], infos: Infos) -> dict[str, Any] | None:
        name = request.get("strategy") or "random"
        now = int(time.time())
        ages = [now - _last_given(infos[image], name) for image in studies]
        weights = np.maximum(np.asarray(ages, dtype=np.float64), 1.0)
        index = int(self._generator.choice(len(studies), p=weights / weights.sum()))
        reason = f"at random out of {len(studies)} unreviewed scans, those not handed out for long more often"
        return {"id": studies[index], "weight": int(weights[index]), "reason": reason}


def _last_given(info: Mapping[str, Any], strategy: str) -> int:
    record = (info.get("strategy") or {}).get(strategy) or {}
    return int(record.get("ts") or 0)
