"""The inference tasks of a running server, which follow what is published, rolled back and removed.

``tasks`` is asked at every ``/infer`` and ``/info/``. It looks at a few file dates, and only when one has changed reads
the list of models again. The table is replaced as a whole, never changed, so a request goes on with the table and the
task it has taken; and a task keeps the folder of its version, which is never changed after publishing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from lib import catalogue
from lib.catalogue import ModelEntry
from lib.configs import METHODS
from lib.infers import SUFFIX, AnomalyInferTask
from monailabel_app.errors import UnknownModel
from monailabel_app.pipelines.sequences import stand_ins
from monailabel_app.weights.listing import fingerprint

logger = logging.getLogger(__name__)


class _Tables:
    """Replaced as a whole. tasks: by the models' names; served: with the twins behind them."""

    def __init__(self, tasks: Mapping[str, AnomalyInferTask], twins: Mapping[str, AnomalyInferTask]):
        self.tasks, self.served = tasks, {**tasks, **twins}


class ModelTable:
    """wanted: of ``--conf models``. make: the task for an entry; twin: another way to show what that task finds.

    Raises UnknownModel for a name that is not there.
    """

    def __init__(
        self,
        app_dir: str | Path,
        wanted: str | None,
        make: Callable[[ModelEntry], AnomalyInferTask],
        twin: Callable[[ModelEntry], AnomalyInferTask] | None = None,
    ):
        self._twin = twin
        self._root = Path(app_dir)
        self._wanted = wanted
        self._make = make
        self._changes = threading.Lock()
        # Taken before the list: a change in between is then seen at the next call.
        self._seen = fingerprint(self._root)
        try:
            chosen = catalogue.choose(self._usable(), wanted)
        except UnknownModel as error:
            logger.error("%s", error)
            raise
        if not chosen:
            logger.warning(
                "no anomaly model in %s/ or %s/ of the app: nothing can be analysed",
                catalogue.SHIPPED,
                catalogue.TRAINED,
            )
        self._warn_of_missing(chosen)
        tasks = {name: make(entry) for name, entry in chosen.items()}
        self._tables = _Tables(tasks, self._twins(tasks))

    def tasks(self) -> Mapping[str, AnomalyInferTask]:
        """A task for every model by its name, as the folders are now; not to be changed."""
        return self._current().tasks

    def served(self) -> Mapping[str, AnomalyInferTask]:
        """The same, and after all of them their twins."""
        return self._current().served

    def _current(self) -> _Tables:
        now = fingerprint(self._root)
        if now == self._seen:
            return self._tables
        with self._changes:
            now = fingerprint(self._root)
            if now != self._seen:
                tasks = self._renewed()
                self._tables = _Tables(tasks, self._twins(tasks))
                self._seen = now
            return self._tables

    def _twins(self, tasks: Mapping[str, AnomalyInferTask]) -> dict[str, AnomalyInferTask]:
        """Of every model whose twin's name is not a model's own."""
        if self._twin is None:
            return {}
        named = {f"{name}{SUFFIX}": task.entry for name, task in tasks.items()}
        return {name: self._twin(entry) for name, entry in named.items() if name not in tasks}

    def _renewed(self) -> dict[str, AnomalyInferTask]:
        """Tasks of what there is now."""
        held = self._tables.tasks
        entries = catalogue.still_chosen(self._usable(), self._wanted)
        tasks = {}
        for name, entry in entries.items():
            tasks[name] = self._make(entry)
            if name not in held:
                logger.info("model %s is new, version %s", name, entry.version or "unnumbered")
            elif held[name].entry.folder != entry.folder:
                logger.info("model %s: version %s serves now", name, entry.version or "unnumbered")
        for name in held.keys() - tasks.keys():
            logger.info("model %s is gone", name)
        if held.keys() - tasks.keys():
            self._warn_of_missing(entries)
        return tasks

    def _warn_of_missing(self, entries: Mapping[str, ModelEntry]) -> None:
        """Where all are offered, that a lesser model is asked first; a list of names is what somebody wanted."""
        if entries and catalogue.offers_all(self._wanted):
            for told in stand_ins(entries):
                logger.warning("%s", told)

    def _usable(self) -> dict[str, ModelEntry]:
        """The models whose method this app knows."""
        usable = {}
        for name, entry in catalogue.list_models(self._root).items():
            if entry.method in METHODS:
                usable[name] = entry
            else:
                known = ", ".join(METHODS)
                logger.warning("model %s is left out: unknown method %r (known: %s)", name, entry.method, known)
        return usable
