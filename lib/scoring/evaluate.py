"""``evaluate``: final labels against what the models mark, as a report page and in the scans' information."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib import catalogue
from lib.catalogue import ModelEntry
from lib.configs.base import site_calibration
from lib.contamination import Contamination
from lib.healthy import HealthySelection
from lib.runner import choose_device
from lib.scoring import reports
from lib.scoring.base import AppScoring, keep, whole_number
from lib.scoring.labelled_set import HOW_TO_LABEL, labelled_scans, labelled_sets
from lib.scoring.progress import DONE, FAILED
from lib.scoring.sequences import ANY, default_model, sequence_of
from monailabel_app.errors import AnomalyAppError, EvaluationFailed, UnknownModel
from monailabel_app.pipelines.evaluation.dataset_types import Dataset
from monailabel_app.pipelines.pace import Pace
from monailabel_app.types import to_json

logger = logging.getLogger(__name__)

NAME = "evaluate"
KEY = "evaluation"
_WORK = "work"
_MOST_WORKERS = 64
_PICTURED = 3


class EvaluateLabels(AppScoring):
    """Measures models on the scans with final labels and on those known as healthy, with the app's own evaluation.

    What was measured or analysed before is not done again, so that a stopped run goes on. The results go into
    ``evaluation`` of the scans' information, one entry per model, and into a report.
    """

    keys = frozenset({"models", "model", "device", "workers", "again"})

    def __init__(
        self,
        root: str | Path,
        models: Callable[[], Mapping[str, ModelEntry]],
        healthy: Callable[[Datastore], HealthySelection],
        contamination: Contamination,
    ):
        super().__init__(
            NAME,
            "Final labels against what models mark, beside two baselines, as a report page; models: names or default",
            root,
        )
        self._root, self._models = Path(root), models
        self._healthy, self._contamination = healthy, contamination

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises UnknownModel, InvalidSettings, EvaluationFailed without a labelled scan, ArchiveUnreachable."""
        given = self.known(request)
        self._asked(given)
        choose_device(given.get("device"))
        self._workers(given, 1)
        if not labelled_scans(datastore):
            raise EvaluationFailed(f"expected scans with a final label that is not empty, got none: {HOW_TO_LABEL}")
        return given

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """The report's id, the models and sets, and how many scans have results now."""
        from monailabel_app.pipelines.evaluation.run import Options, Request
        from monailabel_app.pipelines.evaluation.run import evaluate as run

        given = self.check(request, datastore)
        self.progress.begin(0)
        try:
            entries, sequence = self._chosen(given, datastore)
            selection = self._healthy(datastore)
            sets = labelled_sets(
                datastore, selection, sequence=sequence, learnt_from=self._learnt_from(entries.values(), selection)
            )
            sets = [_with_note(dataset, entries.values()) for dataset in sets]
            scans = sum(len(dataset.scans) for dataset in sets)
            logger.info("evaluation: %d models, %d scans", len(entries), scans)
            known = catalogue.list_models(self._root)
            device = choose_device(given.get("device"))
            workers = 0 if device.startswith("cuda") else self._workers(given, scans)
            again = str(given.get("again") or "").lower() in {"true", "1", "yes"}
            record = run(
                Request(
                    models=tuple(entry.folder for entry in entries.values()),
                    known={name: entry.folder for name, entry in known.items()},
                    sets=tuple(sets),
                    tuning={},
                    explicit=tuple(entry.id for entry in entries.values())[:_PICTURED],
                    strict=bool(self._asked(given)),
                    command="scoring method evaluate of the server",
                ),
                self.folder / _WORK,
                self._root / "cache" / "evaluation",
                Options(again=again, workers=workers, device=device),
                self._stage(),
            )
            result = self._finish(datastore, record, sets, {e.id: n for n, e in {**known, **entries}.items()})
        except BaseException as error:
            self.progress.end(FAILED, error=str(error) if isinstance(error, AnomalyAppError) else type(error).__name__)
            raise
        self.progress.end(DONE, result=result)
        return result

    def _asked(self, given: Mapping[str, Any]) -> list[str]:
        """The models named in a request; none for the defaults. Raises UnknownModel."""
        value = given.get("models") or given.get("model") or ""
        names = value if isinstance(value, (list, tuple)) else str(value).split(",")
        names = [str(name).strip() for name in names if str(name).strip()]
        there_is = self._models()
        if names == ["all"]:
            return list(there_is)
        names = [] if names == ["default"] else names
        unknown = [name for name in names if name not in there_is]
        if unknown or not there_is:
            wanted = ", ".join(repr(name[:80]) for name in unknown)
            raise UnknownModel(f"no model {wanted} on this server; available: {', '.join(there_is) or 'none'}")
        return list(dict.fromkeys(names))

    def _chosen(self, given: Mapping[str, Any], datastore: Datastore) -> tuple[dict[str, ModelEntry], str]:
        """The models to measure, and the sequence of scans about which nobody said any."""
        there_is = self._models()
        names = self._asked(given)
        made_for = {there_is[name].modality for name in names} - {ANY}
        sequence = made_for.pop() if len(made_for) == 1 else "t1"
        if not names:
            images = labelled_scans(datastore)
            found = {sequence_of(image, datastore.get_image_info(image) or {}) or sequence for image in images}
            names = list(dict.fromkeys(filter(None, (default_model(there_is, one) for one in sorted(found)))))
            if not names:
                raise UnknownModel(
                    f"no model for {', '.join(sorted(found))} scans on this server; name one with models"
                )
        return {name: there_is[name] for name in names}, sequence

    def _learnt_from(self, entries: Iterable[ModelEntry], selection: HealthySelection) -> set[str]:
        healthy = [scan.id for scan in selection.scans]
        return set().union(*(self._contamination.learnt_from(entry.folder, healthy) for entry in entries))

    @staticmethod
    def _workers(given: Mapping[str, Any], scans: int) -> int:
        # One core is left to the server, which goes on answering.
        spare = max(1, (os.cpu_count() or 1) - 1)
        return min(whole_number("workers", given.get("workers"), spare), _MOST_WORKERS, max(1, scans))

    def _stage(self) -> Callable[[str, int, int], None]:
        told: set[str] = set()
        pace = Pace()

        def tell(stage: str, done: int, total: int) -> None:
            if pace.due(last=stage not in told or done >= total):
                told.add(stage)
                logger.info("evaluation: %s, %d of %d", stage, done, total)
            self.progress.step(done, total=total, stage=stage)

        return tell

    def _finish(
        self, datastore: Datastore, record: Mapping[str, Any], sets: Iterable[Any], names: Mapping[str, str]
    ) -> dict[str, Any]:
        """Publish the report and write every scan's results beside it."""
        failed = [dict(entry) for entry in record.get("failed", ())]
        summary = {
            "models": sorted({row["model"] for entry in record["sets"] for row in entry["rows"]}),
            "sets": [
                {
                    **{key: entry.get(key) for key in ("name", "title", "modality", "cases", "healthy")},
                    "skipped": len(entry.get("skipped") or ()),
                    "notes": [note for dataset in sets if dataset.name == entry["name"] for note in dataset.notes],
                }
                for entry in record["sets"]
            ],
            "failed": failed,
        }
        report = reports.publish(self.folder, self.folder / _WORK, to_json(summary))
        found = _scan_results(self.folder / _WORK / "scans.csv", names)
        for entry in record["sets"]:
            models = {names.get(row["model"], row["model"]) for row in entry["rows"]}
            for item in entry.get("skipped") or ():
                reason = str(item.get("reason") or item.get("error") or "")[:500]
                found.setdefault(str(item["id"]), {}).update({name: {"error": reason} for name in models})
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for image, models in found.items():
            # A scan that was removed meanwhile needs no results.
            with suppress(AnomalyAppError):
                entries = {name: {**result, "report": report, "time": now} for name, result in models.items()}
                keep(datastore, image, KEY, to_json(entries))
        logger.info("evaluation: the report %s is ready, with results of %d scans", report, len(found))
        return {"report": report, "page": f"/anomaly/evaluation/{report}/", "scans": len(found), **to_json(summary)}


def _with_note(dataset: Dataset, entries: Iterable[ModelEntry]) -> Dataset:
    """A site calibration keeps no ids, so nobody can leave out the scans that it was made on."""
    names = [entry.name for entry in entries if site_calibration(entry)]
    if not names or not dataset.healthy:
        return dataset
    note = (
        f"the site calibration of {', '.join(names)} keeps no ids: where it was made on healthy scans of this set, "
        "their falsely marked volume and the scan scores against them look better than they are"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _scan_results(table: Path, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Of scans.csv: by image and name of the model, Dice and found lesions at each operating point."""
    found: dict[str, dict[str, Any]] = {}
    with table.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            healthy = line["healthy"] == "1"
            result: dict[str, Any] = {
                "healthy": healthy,
                "model": line["model"],
                "score": line["score"],
                "scan_score": _number(line.get("scan_score")),
                "p_value": _number(line.get("p_value")),
                "points": _points(line, healthy),
            }
            if not healthy:
                # In the scan's own space; what is measured lies on the model's.
                result["volume_ml"] = _number(line.get("native_ml") or line.get("volume_ml"))
            found.setdefault(line["id"], {})[names.get(line["model"], line["model"])] = result
    return found


def _points(line: Mapping[str, str], healthy: bool) -> dict[str, dict[str, Any]]:
    points = {}
    for point in [column.removeprefix("threshold_") for column in line if column.startswith("threshold_")]:
        figures = {name: _number(line.get(f"{name}_{point}")) for name in ("false_ml", "false_positives")}
        if not healthy:
            lesions, detected = (_number(line.get(f"{name}_{point}")) for name in ("lesions", "detected"))
            missed = None if lesions is None or detected is None else lesions - detected
            figures |= {"dice": _number(line.get(f"dice_{point}")), "found": detected, "missed": missed}
        points[point] = figures
    return points


def _number(text: str | None) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value
