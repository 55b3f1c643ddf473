"""The evaluation: models on data sets, always beside the baselines, as tables and one page; measured only once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError, EvaluationFailed
from monailabel_app.reports.comparison import comparison_csv, comparison_markdown
from monailabel_app.reports.evaluation_page import evaluation_html
from monailabel_app.types import to_json

from ..calibration_choice import SITE
from ..predict import load_model
from .cases import CaseSet
from .dataset_types import Dataset
from .figures import RESAMPLES, evaluation_record
from .measure import Measurement, analyse_tasks, measure_tasks
from .pictures import make_pictures
from .scan_table import scan_table
from .sets import SetBuilder
from .tasks import MeasuredModel, Task

_LOG = logging.getLogger(__name__)
Stage = Callable[[str, int, int], None]
BASELINES = ("intensity", "atlas_zscore")
SMOOTHINGS = ("standard", "none", "strong")
_NO_NAME = re.compile(r"[^A-Za-z0-9_@-]+")
_LOST_SHARE = 0.5  # a model that fails on more of a set than this is at fault itself


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    models: folders of those asked for. known: folders by name, among which the baselines are found. sets: data sets;
    tuning: by name of a set, its tuning split. explicit: ids of the models whose best and worst cases are shown (3 at
    most). strict: a model that does not fit a set is reported instead of left out silently.
    """

    models: tuple[Path, ...]
    known: Mapping[str, Path]
    sets: tuple[Dataset, ...]
    tuning: Mapping[str, Dataset]
    explicit: tuple[str, ...] = ()
    strict: bool = False
    command: str = ""


@dataclass(frozen=True)
class Options:
    """quick: every fifth case only. again: measure anew. workers: processes; 0 works in this one, as CUDA wants it.

    all_scores, all_smoothings: not only the model's default score and the standard smoothing. calibration: ``site``
    takes a site's own where one is in use, as predictions do; ``shipped`` never does.
    """

    quick: bool = False
    again: bool = False
    all_scores: bool = False
    all_smoothings: bool = False
    workers: int = 0
    device: str = "cpu"
    resamples: int = RESAMPLES
    calibration: str = SITE


def evaluate(
    request: Request, output: Path, cache: Path, options: Options = Options(), stage: Stage | None = None
) -> dict[str, Any]:
    """Measure models on data sets and write ``evaluation.json``, ``.csv``, ``.md``, ``.html`` and ``scans.csv``.

    What was measured before with the same model and cases is read again, whatever its card says now; what was analysed
    before a kill is not analysed again. Both baselines of a set's sequence are always measured along. A model that
    fails is reported and the others go on; a scan that cannot be used is listed as skipped and left out for all
    models. Returns the record. Raises EvaluationFailed when nothing at all could be measured.
    """
    run = _Run(request, Path(output), Path(cache), options, stage)
    run.plan()
    run.analyse()
    run.measure()
    return run.write()


def fits(model: MeasuredModel, dataset: Dataset) -> str:
    """Why a model cannot be measured on a set; empty when it can."""
    wanted = model.modality.lower()
    if wanted not in ("any", dataset.modality.lower()):
        return f"expected a model for {dataset.modality} scans, got one for {model.modality}"
    return ""


class _Run:
    """The state of one evaluation."""

    def __init__(self, request: Request, output: Path, cache: Path, options: Options, stage: Stage | None) -> None:
        self._request, self._output, self._cache, self._options, self._stage = request, output, cache, options, stage
        self._builder = SetBuilder(
            cache, workers=options.workers, quick=options.quick, device=options.device, stage=stage
        )
        self._failed: list[dict[str, str]] = []
        self._tasks: list[Task] = []
        self._sets: list[Dataset] = []
        self._found: dict[int, Measurement] = {}
        self._loaded: dict[Path, MeasuredModel | None] = {}

    def plan(self) -> None:
        """Load the models, prepare the sets as they want them, and drop what cannot be used."""
        models = self._models()
        self._sets = list(self._request.sets)
        self._sets += [dataset for name, dataset in self._request.tuning.items()]
        for dataset in self._sets:
            chosen = self._for_set(dataset, models)
            built = self._build(dataset, chosen)
            skipped = _union(cases.skipped for cases in built.values())
            for model in chosen:
                cases = built.get(_view(model))
                if cases is not None:
                    others = cases.without([item for item in skipped if item not in cases.skipped])
                    self._tasks.append(Task(model, replace(others, skipped=tuple(skipped))))

    def _build(self, dataset: Dataset, chosen: Sequence[MeasuredModel]) -> dict[Any, CaseSet]:
        """The set as each kind of model sees it; a kind that most scans are useless for is left out itself."""
        built: dict[Any, CaseSet] = {}
        failed: dict[Any, str] = {}
        for view in dict.fromkeys(_view(model) for model in chosen):
            try:
                built[view] = self._builder.build(dataset, *view)
            except AnomalyAppError as error:
                failed[view] = str(error)
        fewest = min((len(cases.skipped) for cases in built.values()), default=0)
        for view, cases in list(built.items()):
            if len(cases.skipped) - fewest > _LOST_SHARE * len(dataset.scans):
                failed[view] = f"most scans cannot be prepared for it, the first: {cases.skipped[0]['reason']}"
                del built[view]
        for model in chosen:
            if _view(model) in failed:
                self._fail(model.id, dataset.name, failed[_view(model)])
        return built

    def analyse(self) -> None:
        """Every network on every scan that it has not seen; what a scan spoils is left out for all models."""
        while True:
            self._keep_measured()
            missing = [index for index in range(len(self._tasks)) if index not in self._found]
            tasks = [self._tasks[index] for index in missing]
            options = self._options
            lost = analyse_tasks(tasks, self._cache, workers=options.workers, device=options.device, stage=self._stage)
            gone: dict[str, dict[str, str]] = {}
            dropped = set()
            for index, reasons in zip(missing, lost, strict=True):
                task = self._tasks[index]
                if not reasons:
                    continue
                if len(reasons) > _LOST_SHARE * len(task.scans):
                    self._fail(task.model.id, task.cases.name, next(iter(reasons.values())))
                    dropped.add(index)
                    continue
                for name, reason in reasons.items():
                    _LOG.warning("a scan of %s is left out: %s", task.cases.name, reason)
                    gone.setdefault(_set_name(task), {}).setdefault(name, reason)
            if not gone and not dropped:
                return
            self._found.clear()
            tasks = [task for index, task in enumerate(self._tasks) if index not in dropped]
            self._tasks = [self._without(task, gone.get(_set_name(task), {})) for task in tasks]

    def measure(self) -> None:
        """Read every analysed scan; each measurement is written as soon as it is whole."""
        missing = [index for index in range(len(self._tasks)) if index not in self._found]
        options = self._options
        made = measure_tasks(
            [self._tasks[index] for index in missing],
            self._cache,
            workers=options.workers,
            device=options.device,
            stage=self._stage,
        )
        for position, measurement in made:
            index = missing[position]
            task = self._tasks[index]
            if isinstance(measurement, str):
                self._fail(task.model.id, task.cases.name, measurement)
                continue
            measurement.save(self._path(task))
            self._found[index] = measurement

    def write(self) -> dict[str, Any]:
        """The record and everything made from it."""
        order = {(d.name, d.split): i for i, d in enumerate(self._sets)}
        tuned = {(d.name, d.split) for d in self._request.tuning.values()}
        results = [self._found[index] for index in sorted(self._found)]
        results.sort(key=lambda m: order.get(_set_key(m), 0))
        main = [m for m in results if _set_key(m) not in tuned]
        if not main:
            reason = f", the first: {self._failed[0]['error']}" if self._failed else ""
            raise EvaluationFailed(f"expected to measure a model on a set, could not measure any{reason}")
        record = evaluation_record(
            [m for m in main if m.counts],
            tuning=[m for m in results if _set_key(m) in tuned and m.counts],
            failed=self._failed,
            command=self._request.command,
            resamples=self._options.resamples,
            quick=self._options.quick,
            healthy_only=_healthy_only([m for m in main if not m.counts]),
        )
        pictures = make_pictures(record, self._shown(main), self._cache)
        self._output.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            (self._output / name).parent.mkdir(parents=True, exist_ok=True)
            (self._output / name).write_bytes(content)
        texts = {
            "evaluation.json": json.dumps(to_json(record), indent=1) + "\n",
            "evaluation.csv": comparison_csv(record),
            "evaluation.md": comparison_markdown(record),
            "scans.csv": scan_table(main),
        }
        for name, text in texts.items():
            (self._output / name).write_text(text)
        (self._output / "evaluation.html").write_text(evaluation_html(record, pictures=pictures), encoding="utf-8")
        return record

    def _models(self) -> list[MeasuredModel]:
        return [model for folder in self._request.models if (model := self._load(folder, "all")) is not None]

    def _load(self, folder: Path, dataset: str) -> MeasuredModel | None:
        """What there is to know of a model, which is not held; None, and reported, where it cannot be loaded."""
        if folder not in self._loaded:
            try:
                model = load_model(folder)
            except AnomalyAppError as error:
                self._fail(Path(folder).name, dataset, str(error))
                self._loaded[folder] = None
                return None
            scores = model.scores if self._options.all_scores else model.scores[:1]
            smoothings = SMOOTHINGS if self._options.all_smoothings else SMOOTHINGS[:1]
            self._loaded[folder] = MeasuredModel.of(model, scores, smoothings, self._options.calibration)
        return self._loaded[folder]

    def _for_set(self, dataset: Dataset, models: Sequence[MeasuredModel]) -> list[MeasuredModel]:
        """The models asked for that fit a set, and its two baselines."""
        chosen = []
        for model in models:
            why_not = fits(model, dataset)
            if not why_not:
                chosen.append(model)
            elif self._request.strict:
                self._fail(model.id, dataset.name, why_not)
        for method in BASELINES:
            for name in (f"{method}_{dataset.modality.lower()}", f"{method}_any"):
                folder = self._request.known.get(name)
                if folder is None:
                    continue
                baseline = self._load(folder, dataset.name)
                if baseline is None:
                    continue
                if baseline.model_hash not in {model.model_hash for model in chosen}:
                    chosen.append(baseline)
                # A baseline that knows single levels only leaves most of a volume to the one for any sequence.
                if dataset.slices or baseline.levels is None:
                    break
        return chosen

    def _keep_measured(self) -> None:
        """Take over what was measured before, unless it is to be measured again."""
        for index, task in enumerate(self._tasks):
            kept = None if self._options.again else Measurement.load(self._path(task))
            if kept is not None and _is_of(kept, task):
                kept.record["set"]["skipped"] = [dict(item) for item in task.cases.skipped]
                self._found[index] = kept

    def _path(self, task: Task) -> Path:
        model, cases = task.model.id, task.cases
        quick = "-quick" if self._options.quick else ""
        split = f"-{cases.split}" if cases.split else ""
        # Names are whatever a description says, and what follows a dot would be taken for the ending.
        name = _NO_NAME.sub("_", f"{cases.name}{split}-{cases.key[:8]}{quick}")
        return self._output / "measured" / f"{model}-{task.model.model_hash[:12]}" / name

    def _without(self, task: Task, reasons: Mapping[str, str]) -> Task:
        skipped = [{"id": name, "stage": "analyse", "reason": reason} for name, reason in reasons.items()]
        return replace(task, cases=task.cases.without(skipped))

    def _shown(self, results: Sequence[Measurement]) -> list[tuple[Task, Measurement]]:
        """The tasks whose best and worst cases are shown."""
        chosen = list(self._request.explicit[:3])
        wanted = {id(found) for found in results if found.counts}
        pairs = [(self._tasks[index], found) for index, found in self._found.items() if id(found) in wanted]
        return [(task, found) for task, found in pairs if task.model.id in chosen]

    def _fail(self, model: str, dataset: str, error: str) -> None:
        _LOG.warning("%s on %s is left out: %s", model, dataset, error)
        self._failed.append({"model": model, "set": dataset, "error": error})


def _is_of(kept: Measurement, task: Task) -> bool:
    """Whether a measurement is of these scans and holds every reading that is wanted."""
    wanted = {f"{score}/{smoothing}/own" for score in task.model.scores for smoothing in task.model.smoothings}
    return kept.record["set"]["key"] == task.cases.key and wanted <= set(kept.record["protocols"])


def _view(model: MeasuredModel) -> tuple[Any, ...]:
    """How a model wants scans prepared."""
    return model.prepare_settings, model.levels


def _set_name(task: Task) -> str:
    return f"{task.cases.name}/{task.cases.split}"


def _set_key(measurement: Measurement) -> tuple[str, str | None]:
    about = measurement.record["set"]
    return about["name"], about.get("split")


def _union(groups) -> list[Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {}
    for group in groups:
        for item in group:
            found.setdefault(item["id"], item)
    return list(found.values())


def _healthy_only(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Sets without lesions: their scans are in scans.csv; here what they are, and how much is marked in them."""
    found = []
    for measurement in measurements:
        about, protocols = measurement.record["set"], measurement.record["protocols"]
        for protocol in protocols.values():
            scans = protocol["healthy"]
            found.append(
                {
                    "set": about["name"],
                    "title": about["title"],
                    "split": about["split"],
                    "model": measurement.record["model"]["id"],
                    "score": protocol["score"],
                    "calibration": protocol["calibration"],
                    "leave_one_out": protocol["leave_one_out"],
                    "healthy": len(scans),
                    "mean_false_ml": {
                        name: sum(scan["points"][name]["false_ml"] for scan in scans) / len(scans)
                        for name in protocol["points"]
                    },
                }
            )
    return found
