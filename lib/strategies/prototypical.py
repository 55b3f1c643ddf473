"""The scan that adds most to those already known as healthy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.errors import ArchiveUnreachable
from lib.healthy import healthy_scans
from lib.strategies.worklist import lend
from monailabel_app.errors import AnomalyAppError

logger = logging.getLogger(__name__)

MAX_NEW = 4
SECONDS = 6.0
_Stamp = tuple[str, int, int]
_UNREACHABLE: _Stamp = ("", 0, 0)


class Prototypical(Strategy):
    """The unlabelled scan that k-centre greedy would take next, after the scans confirmed as healthy.

    Confirmed: reviewed, marked or listed (``lib.healthy``); a whole datastore declared healthy confirms no single scan.
    The scans are compared by the shipped model's frozen network. A scan is prepared for that at most once: a request
    prepares ``max_new`` scans at most, begins none after ``seconds``, and chooses among those compared so far; the next
    requests go on. The first import of the library and the models happens at the first request.

    One lock, held for that time: a second request meanwhile chooses among what is there.
    """

    def __init__(self, app_dir: str, conf: Mapping[str, str], *, max_new: int = MAX_NEW, seconds: float = SECONDS):
        super().__init__("Unlabelled scan least like those already known as healthy")
        self._cache_folder = Path(app_dir) / "cache"
        self._models = Path(app_dir) / "model_weights"
        self._conf = dict(conf)
        self._max_new, self._seconds = max_new, seconds
        self._lock = threading.Lock()
        self._encoder: Any = None
        self._known: dict[str, tuple[_Stamp, np.ndarray | None]] = {}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """``id``, ``reason``, ``distance`` (None before two scans are compared) and ``embedded`` ("n of m").

        Out of the scans that no other reader has now (``worklist``); None when none is left. Raises AnomalyAppError
        when the healthy scans cannot be told.
        """
        return lend(request, datastore, lambda studies, _: self._next(datastore, studies))

    def _next(self, datastore: Datastore, studies: Sequence[str]) -> dict[str, Any] | None:
        selection = healthy_scans(datastore, self._conf, inspect=False)
        centres = sorted(scan.id for scan in selection.scans if scan.reason != "all")
        aside = {*centres, *(scan.id for scan in selection.contaminated)}
        candidates = sorted(set(studies) - aside)
        if not candidates:
            return None
        if self._lock.acquire(blocking=False):
            try:
                self._compare(datastore, candidates, centres)
            finally:
                self._lock.release()
        known = dict(self._known)
        vectors = {image: known[image][1] for image in (*candidates, *centres) if image in known}
        vectors = {image: vector for image, vector in vectors.items() if vector is not None}
        count = {"embedded": f"{len(vectors)} of {len(candidates) + len(centres)}"}
        ready = [image for image in candidates if image in vectors]
        if not ready:
            # One that is known to be unusable only when there is no other.
            image = next((image for image in candidates if image not in known), candidates[0])
            return {"id": image, "reason": "no scan has been compared yet: in the order of the ids", "distance": None,
                    **count}  # fmt: skip
        return {**self._choose(vectors, ready, [image for image in centres if image in vectors]), **count}

    @staticmethod
    def _choose(vectors: dict[str, np.ndarray], candidates: list[str], centres: list[str]) -> dict[str, Any]:
        from monailabel_app.training.core_set import next_scan

        ids = list(vectors)
        position = {image: index for index, image in enumerate(ids)}
        index, distance, outlier = next_scan(
            np.stack(list(vectors.values())), [position[i] for i in candidates], [position[i] for i in centres]
        )
        if outlier:
            reason = "unlike the other healthy scans: look at it before marking it as healthy"
        elif centres:
            reason = f"least like the healthy scans known so far ({len(centres)})"
        else:
            reason = "most like the other scans"
        return {"id": ids[index], "reason": reason, "distance": round(distance, 4) if len(ids) > 1 else None}

    def _compare(self, datastore: Datastore, candidates: list[str], centres: list[str]) -> None:
        """Embed scans that are new or have changed, candidates and centres in turn, within the budget."""
        began, made = time.monotonic(), 0
        try:
            embed = self._embedding()
        except AnomalyAppError as error:
            logger.warning("scans cannot be compared: %s", error)
            return
        for image in filter(None, chain.from_iterable(zip_longest(candidates, centres))):
            if made >= self._max_new or time.monotonic() - began >= self._seconds:
                return
            stamp = self._known[image][0] if image in self._known else None
            if stamp == _UNREACHABLE:
                continue
            try:
                path = Path(datastore.get_image_uri(image))
                if stamp == (stamp := _stamp(path)):
                    continue
            except ArchiveUnreachable:
                return  # Asked again at the next request.
            except (AnomalyAppError, OSError) as error:
                self._set_aside(image, _UNREACHABLE, error)
                continue
            try:
                vector, stored = embed(path)
                self._known[image] = stamp, vector
                made += not stored
            except (AnomalyAppError, OSError) as error:
                self._set_aside(image, stamp, error)
                made += 1

    def _set_aside(self, image: str, stamp: _Stamp, error: Exception) -> None:
        """Not tried again until its file changes, so that unusable scans cannot use up the budget of each request."""
        logger.warning("a scan cannot be compared with the others: %s", type(error).__name__)
        self._known[image] = stamp, None

    def _embedding(self) -> Callable[[Path], tuple[np.ndarray, bool]]:
        from monailabel_app.pipelines.prototypes import Encoder, embed_file

        if self._encoder is None:
            self._encoder = Encoder(self._models / "ddpm_t1")
        return lambda path: embed_file(path, self._encoder, self._cache_folder)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
