"""``/batch/infer``: the scans of the datastore by all GPUs; what is current is left out, a bad scan costs only itself.

A scan is left out while its record is current (``lib.scoring.records``) and the label that the batch would write is
there, by the same model with the same settings. So a batch that was stopped or killed goes on where it was: what it had
done is in the datastore. ``again: true`` in the request does everything anew.

Progress is a small file, as of the scoring methods. ``runs/batch/batch.csv`` and ``batch.html`` list the scans of the
last batch, written as it goes: patient data.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from lib.errors import place_of
from lib.infers import AnomalyInferTask
from lib.reviewed import tag_of_analysis
from lib.runner import choose_device, list_devices
from lib.scoring.base import whole_number
from lib.scoring.progress import DONE, FAILED, ProgressFile
from lib.scoring.records import Basis, known_stamp, records_of
from lib.scoring.sequences import sequence_of
from monailabel_app.errors import AnomalyAppError, InvalidSettings
from monailabel_app.pipelines.cohort.tables import FLAGGED_P, Row, TableWriter, row_of
from monailabel_app.types import to_json

logger = logging.getLogger(__name__)

FOLDER = Path("runs") / "batch"
_NAME, _TITLE = "batch", "Batch analysis"
_MONAI_LABEL_ONLY = {"multi_gpu", "gpus", "max_workers", "max_batch_size", "images", "again", "logging"}
_YES = {"true", "1", "yes", "on"}


class AnomalyBatchInfer(BatchInferTask):
    """MONAI Label's own divides by the number of GPUs and fails without one. root: the app's folder."""

    def __init__(self, root: str | Path = "."):
        self.folder = Path(root) / FOLDER
        self.progress = ProgressFile(self.folder / "progress.json")

    def __call__(
        self,
        request: dict[str, Any],
        datastore: Datastore,
        infer: Callable,
        task: AnomalyInferTask | None = None,
    ) -> dict[str, Any]:
        """Result (``skipped: current``, or ``error: text``) by image id; labels are saved under ``label_tag``.

        task: what analyses, by which it is told what is current; without one nothing is left out. Raises
        InvalidSettings.
        """
        limit = whole_number("max_batch_size", request.get("max_batch_size"))
        devices = batch_devices(request)
        images = sorted(self.get_images(request, datastore))
        tag = tag_of_analysis(request)
        shared = {key: value for key, value in request.items() if key not in _MONAI_LABEL_ONLY}
        shared |= {"save_label": True, "label_tag": tag}
        work = _Work(datastore, task, shared, tag, infer)
        again = str(request.get("again")).lower() in _YES
        results: dict[str, Any] = {}
        todo = []
        for image in images:
            held = None if again else work.current(image)
            if held is None:
                todo.append(image)
            else:
                results[image] = held
        todo = todo[:limit] if limit > 0 else todo
        logger.info("batch: %d scans to analyse, %d are current, on %s", len(todo), len(results), ", ".join(devices))
        rows = {image: work.row(image) for image in results}
        writer = TableWriter(self.folder, _TITLE, name=_NAME)
        self.progress.begin(len(todo))
        status = FAILED
        try:
            results |= self._analyse(work, todo, devices, rows, writer)
            status = DONE
        finally:
            failed = sum("error" in result for result in results.values())
            counts = {"analysed": len(rows) - failed, "failed": failed, "current": len(images) - len(todo)}
            _write(writer, rows.values(), counts)
            self.progress.end(status, result=counts)
        return results

    def _analyse(
        self, work: _Work, todo: list[str], devices: list[str], rows: dict[str, Row], writer: TableWriter
    ) -> dict[str, Any]:
        """One thread per device takes the next scan when it is done with one."""
        results: dict[str, Any] = {}
        waiting, taking = iter(todo), threading.Lock()
        stop, failed = threading.Event(), 0

        def work_off(device: str) -> None:
            nonlocal failed
            while not stop.is_set():
                with taking:
                    image = next(waiting, None)
                if image is None:
                    return
                result = work.analyse(image, device)
                row = work.row(image, result.get("error"))
                with taking:
                    results[image], rows[image] = result, row
                    failed += "error" in result
                    left = self.progress.step(len(results), failed)
                    logger.info(
                        "batch: %d of %d done, %d failed, about %.0f s left", len(results), len(todo), failed, left or 0
                    )
                    counts = {"analysed": len(results) - failed, "failed": failed, "to do": len(todo) - len(results)}
                    _write(writer, rows.values(), counts, now=False)

        with ThreadPoolExecutor(len(devices), "batch") as pool:
            # Each thread works in the name of who started the batch.
            futures = [pool.submit(copy_context().run, work_off, device) for device in devices]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
        return results


class _Work:
    """What is done with one scan, and what is told of it."""

    def __init__(
        self, datastore: Datastore, task: AnomalyInferTask | None, request: dict[str, Any], tag: str, infer: Callable
    ):
        self._datastore, self._task, self._request, self._tag, self._infer = datastore, task, request, tag, infer
        self._basis = Basis(task, request) if task is not None else None

    def current(self, image: str) -> dict[str, Any] | None:
        """What is said of a scan that is left out; None where it has to be analysed."""
        if self._basis is None:
            return None
        info = self._datastore.get_image_info(image) or {}
        record = self._record(info)
        if not self._basis.is_current(record, known_stamp(info)):
            return None
        if record.get("error"):
            return {"skipped": "current", "error": record["error"]}
        label = self._datastore.get_label_info(image, self._tag) or {}
        made = label.get("params") or {}
        same = label.get("model") == self._request.get("model") and _made_by(self._basis.to_json(), made)
        return {"skipped": "current", "tag": self._tag} if same else None

    def analyse(self, image: str, device: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            result = self._infer({**self._request, "image": image, "device": device}, self._datastore)
            Path(result.pop("file")).unlink(missing_ok=True)
            return to_json(result)
        except AnomalyAppError as error:
            logger.warning("batch: a scan could not be analysed: %s", type(error).__name__)
            return {"error": str(error)}
        except Exception as error:
            # One scan must not cost the others their results.
            seconds = time.monotonic() - began
            logger.error("batch: a scan could not be analysed after %.0f s: %s", seconds, place_of(error))
            return {"error": "the analysis failed; the server's log has the details"}

    def row(self, image: str, error: str | None = None) -> Row:
        """From the scan's record; error: what happened now, which a record need not tell."""
        info = self._datastore.get_image_info(image) or {}
        record = dict(self._record(info) or {})
        flagged = bool(record.get("lesions")) and (record.get("p_value") or 1.0) <= FLAGGED_P
        error = error or record.get("error")
        return row_of(
            {
                **({} if error else record),
                "scan": image,
                "state": "failed" if error else "analysed",
                "error": error,
                "sequence": sequence_of(image, info),
                "model": self._request.get("model"),
                "flagged": flagged and not error,
                "model_hash": record.get("hash"),
                "seconds": {"total": record.get("seconds")},
                "time": record.get("time"),
            }
        )

    def _record(self, info: Mapping[str, Any]) -> dict[str, Any] | None:
        return records_of(info).get(self._task.entry.name) if self._task is not None else None


def batch_devices(request: Mapping[str, Any]) -> list[str]:
    """The devices that work: all GPUs, or those of ``gpus`` (``0,2``); one where ``multi_gpu`` is false.

    A request for one device by name has that one. Raises InvalidSettings.
    """
    asked = request.get("device")
    first = choose_device(asked)
    name = str((asked[0] if isinstance(asked, (list, tuple)) and asked else asked) or "auto").strip().lower()
    if name not in {"auto", "cuda"} or str(request.get("multi_gpu", True)).lower() not in _YES:
        return [first]
    gpus = [device for device in list_devices() if device != "cpu"]
    wanted = str(request.get("gpus") or "all").strip().lower()
    if not gpus or wanted == "all":
        return gpus or [first]
    chosen = [f"cuda:{number.strip()}" for number in wanted.split(",") if number.strip()]
    if not chosen or any(device not in gpus for device in chosen):
        raise InvalidSettings(f"expected gpus to be all, or numbers out of 0 to {len(gpus) - 1}; got {wanted[:40]!r}")
    return list(dict.fromkeys(chosen))


def _made_by(basis: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a label's result is of that model, calibration and settings."""
    model, calibration = made.get("model") or {}, made.get("calibration") or {}
    settings = basis["settings"]
    # With a threshold of one's own a result names no operating point.
    asked = {key: settings[key] for key in settings if not (key == "operating_point" and "threshold" in settings)}
    said = made.get("settings") or {}
    return (
        isinstance(model, Mapping)
        and model.get("hash") == basis["hash"]
        and calibration.get("id", basis["calibration"]) == basis["calibration"]
        and all(said.get(key) == value for key, value in asked.items())
    )


def _write(writer: TableWriter, rows: Iterable[Row], counts: Mapping[str, int], *, now: bool = True) -> None:
    """A list that cannot be written is no reason to stop the work."""
    notes = [", ".join(f"{count} {what}" for what, count in counts.items())]
    try:
        if now:
            writer.write(rows, notes)
        else:
            writer.maybe(rows, lambda: notes)
    except OSError as error:
        logger.warning("the list of the batch cannot be written (%s)", type(error).__name__)
