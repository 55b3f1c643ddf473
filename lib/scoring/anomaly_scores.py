"""``anomaly_scores``: an anomaly score for every scan of the datastore that has no current one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.audit_events import note_scored
from lib.errors import place_of
from lib.infers import AnomalyInferTask
from lib.runner import choose_device
from lib.scoring.base import AppScoring, whole_number
from lib.scoring.progress import DONE, FAILED
from lib.scoring.records import Basis, known_stamp, record_result, records_of
from lib.scoring.sequences import default_model, sequence_of
from lib.shared_table import stamp_of
from monailabel_app.errors import AnomalyAppError, UnknownModel
from monailabel_app.pipelines.pace import Pace
from monailabel_app.types import to_json

logger = logging.getLogger(__name__)

NAME = "anomaly_scores"
_SETTINGS = ("operating_point", "score", "smoothing", "min_lesion_volume", "seed", "input_gate", "calibration")


@dataclass(frozen=True)
class _Wanted:
    """A scan to score: by which model, and whether it has a score that is out of date."""

    image: str
    model: str
    outdated: bool


class AnomalyScores(AppScoring):
    """Writes ``anomaly`` into the scans' information, one entry per model.

    A score is current while the model's files, its calibration, the settings and the scan's file are those it was made
    with. A scan that cannot be analysed is recorded with its error and left alone until one of these changes.
    """

    keys = frozenset({"model", "limit", "device", *_SETTINGS})

    def __init__(self, root: str | Path, tasks: Callable[[], Mapping[str, AnomalyInferTask]]):
        super().__init__(
            NAME,
            "Anomaly score, p-value and volume of every scan without a current one; model: default of the sequence",
            root,
        )
        self._tasks = tasks

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises UnknownModel, InvalidSettings."""
        given = self.known(request)
        tasks = self._tasks()
        name = str(given.get("model") or "")
        if not tasks or (name and name not in tasks):
            there_is = ", ".join(tasks) or "none"
            raise UnknownModel(f"no model {name[:80]!r} on this server; available: {there_is}")
        whole_number("limit", given.get("limit"))
        choose_device(given.get("device"))
        asked = [name] if name else sorted({default_model(_entries(tasks), None)})
        for model in asked:
            tasks[model].read(given)
        return given

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Counts of what was done: analysed, failed, current before, left for the next time, without a model."""
        given = self.check(request, datastore)
        tasks = self._tasks()
        bases = {name: Basis(task, given) for name, task in tasks.items()}
        wanted, counts = self._wanted(datastore, given, tasks, bases)
        limit = whole_number("limit", given.get("limit"))
        todo = wanted[:limit] if limit else wanted
        counts |= {"analysed": 0, "failed": 0, "left": len(wanted) - len(todo)}
        self.progress.begin(len(todo))
        pace = Pace()
        logger.info("scoring: %d scans to analyse, %d have a current score", len(todo), counts["current"])
        try:
            for number, one in enumerate(todo, start=1):
                failed = self._score(datastore, one, tasks[one.model], bases[one.model], given)
                counts["failed" if failed else "analysed"] += 1
                left = self.progress.step(number, counts["failed"])
                if pace.due(last=number == len(todo)):
                    text = "scoring: %d of %d done, %d failed, about %.0f s left"
                    logger.info(text, number, len(todo), counts["failed"], left)
        except BaseException:
            self.progress.end(FAILED)
            raise
        self.progress.end(DONE, result=counts)
        return to_json(counts)

    def _wanted(
        self,
        datastore: Datastore,
        given: Mapping[str, Any],
        tasks: Mapping[str, AnomalyInferTask],
        bases: Mapping[str, Basis],
    ) -> tuple[list[_Wanted], dict[str, int]]:
        """The scans without a current score, those that never had one first."""
        entries = _entries(tasks)
        counts, wanted = {"current": 0, "without_model": 0}, []
        for image in sorted(datastore.list_images()):
            info = datastore.get_image_info(image) or {}
            model = str(given.get("model") or "") or default_model(entries, sequence_of(image, info))
            if model is None:
                counts["without_model"] += 1
                continue
            held = records_of(info).get(model)
            if bases[model].is_current(held, known_stamp(info)):
                counts["current"] += 1
            else:
                wanted.append(_Wanted(image, model, bool(held)))
        return sorted(wanted, key=lambda one: one.outdated), counts

    def _score(
        self, datastore: Datastore, one: _Wanted, task: AnomalyInferTask, basis: Basis, given: Mapping[str, Any]
    ) -> bool:
        """Analyse one scan and keep what came out. Returns whether it failed."""
        began, outcome, path, stamp = time.monotonic(), {}, "", ""
        try:
            path = datastore.get_image_uri(one.image)
            stamp = stamp_of(path)
            file, outcome = task({**given, "image": path})
            Path(file).unlink(missing_ok=True)
        except AnomalyAppError as fault:
            outcome = fault
            logger.warning("a scan could not be scored: %s", type(fault).__name__)
        except Exception as fault:
            # One scan must not cost the others their scores; another try may find it mended.
            outcome = fault
            logger.error("a scan could not be scored: %s", place_of(fault))
        seconds = time.monotonic() - began
        note_scored(one.model, one.image, outcome, seconds)
        if not stamp or stamp != stamp_of(path):
            # Not fetched, removed, or another file by now: what was found belongs to no scan that is here.
            return True
        record_result(datastore, one.image, task, given, outcome, seconds, path, basis=basis, stamp=stamp)
        return isinstance(outcome, Exception)


def _entries(tasks: Mapping[str, AnomalyInferTask]) -> dict[str, Any]:
    return {name: task.entry for name, task in tasks.items()}
