"""Models on sets of prepared cases: what every scan gives, from which every figure of the tables follows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monailabel_app.errors import EvaluationFailed
from monailabel_app.files import replace_file
from monailabel_app.types import to_json

from ..healthy_thresholds import HealthyThresholds
from ..predict import AnomalyModel
from ..shared_scans import UNSEEN
from ..workers import WorkerDied, map_in_processes
from .analyses import AnalysisJob, analyse_missing
from .cases import CaseReference, CaseSet, references
from .own_folder import claim, release
from .reading import FEWEST_HEALTHY, Known, Levers, Protocol, Reader, Reading, ReadingPlan
from .store import Costs
from .tasks import MeasuredModel, Task

_LOG = logging.getLogger(__name__)
Stage = Callable[[str, int, int], None]
VERSION = 5  # raised when a record says more, or other things, of the same maps
_HEALTHY = "healthy"


@dataclass(frozen=True)
class Measurement:
    """A model on a set. record: JSON, one entry per protocol.

    counts: (cases, 2, BINS) int32 by protocol, lesion voxels first; healthy_counts: (healthy, BINS).
    """

    record: dict[str, Any]
    counts: dict[str, np.ndarray]
    healthy_counts: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write ``path``.json and ``path``.safetensors; the first is there only when both are whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"cases/{name}": torch.from_numpy(values) for name, values in self.counts.items()}
        tensors |= {f"healthy/{name}": torch.from_numpy(values) for name, values in self.healthy_counts.items()}
        path.with_suffix(".json").unlink(missing_ok=True)
        save_file(tensors, str(path.with_suffix(".safetensors")))
        replace_file(path.with_suffix(".json"), json.dumps(to_json(self.record), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Measurement | None:
        """None where there is none, none that can be read, or one of another version of the readings."""
        try:
            record = json.loads(path.with_suffix(".json").read_text())
            tensors = load_file(str(path.with_suffix(".safetensors")))
        except (OSError, ValueError, SafetensorError):
            return None
        if record.get("version") != VERSION:
            return None
        kinds: dict[str, dict[str, np.ndarray]] = {"cases": {}, "healthy": {}}
        for name, values in tensors.items():
            kind, _, protocol = name.partition("/")
            kinds.setdefault(kind, {})[protocol] = values.numpy()
        return cls(record, kinds["cases"], kinds["healthy"])


def measure(
    model: AnomalyModel,
    cases: CaseSet,
    *,
    cache: Path,
    scores: Sequence[str] = (),
    smoothings: Sequence[str] = ("standard",),
    workers: int = 0,
    device: str = "cpu",
    stage: Stage | None = None,
) -> Measurement:
    """Analyse every scan of a set once and count what each score makes of it (default: the model's first score).

    A model that was calibrated on the set's healthy scans meets them, and cases of the same people, with statistics and
    thresholds that leave that person out. Another one is read with its own calibration, and beside it with one made
    from the set's healthy scans. What a model does not analyse counts as not marked. Masks are the product's:
    components below 0.1 ml are dropped. cache: analyses are kept there. Raises EvaluationFailed when a scan cannot be
    analysed.
    """
    task = Task(MeasuredModel.of(model, scores, smoothings), cases)
    failed = analyse_tasks([task], cache, workers=workers, device=device, stage=stage)[0]
    if failed:
        raise EvaluationFailed(f"expected to analyse every scan of {cases.name}, got: {next(iter(failed.values()))}")
    found = next(iter(measure_tasks([task], cache, workers=workers, device=device, stage=stage)))[1]
    if isinstance(found, str):
        raise EvaluationFailed(f"{task.title}: {found}")
    return found


def analyse_tasks(
    tasks: Sequence[Task], cache: Path, *, workers: int = 0, device: str = "cpu", stage: Stage | None = None
) -> list[dict[str, str]]:
    """Analyse what has not been analysed before; per task the ids of the scans that failed, with the reasons."""
    owners, jobs = [], []
    for index, task in enumerate(tasks):
        for part in task.model.parts:
            for case in task.scans:
                owners.append((index, case.id))
                jobs.append(AnalysisJob(part, case, cache, device))
    total = [len(task.model.parts) * len(task.scans) for task in tasks]
    done = [0] * len(tasks)
    failed: list[dict[str, str]] = [{} for _ in tasks]
    for position, reason in analyse_missing(jobs, workers):
        index, name = owners[position]
        if reason:
            failed[index][name] = reason
        done[index] += 1
        if stage is not None:
            stage(f"analysing: {tasks[index].title}", done[index], total[index])
    return failed


def measure_tasks(
    tasks: Sequence[Task], cache: Path, *, workers: int = 0, device: str = "cpu", stage: Stage | None = None
) -> Iterator[tuple[int, Measurement | str]]:
    """What every task gives as soon as it is known, or why it could not be measured; all scans are analysed before."""
    state = _Measuring(tasks, cache, workers, device, stage or (lambda name, done, total: None))
    try:
        state.own_raws()
        state.protocols()
        state.summaries()
        yield from state.readings()
    finally:
        state.clean()


@dataclass(frozen=True)
class _Job:
    """A step of one task for one scan: ``raw``, ``protocols``, ``summary`` or ``read``. index: of a healthy scan."""

    step: str
    plan: ReadingPlan
    scores: tuple[str, ...] = ()
    smoothings: tuple[str, ...] = ()
    protocols: tuple[Protocol, ...] = ()
    index: int | None = None
    case: CaseReference | None = None
    levers: Mapping[Protocol, Levers] = field(default_factory=dict)


@dataclass(frozen=True)
class _Failure:
    reason: str


class _Measuring:
    """The steps of all tasks, each for all of them at once, so that processes start once per step."""

    def __init__(self, tasks: Sequence[Task], cache: Path, workers: int, device: str, stage: Stage) -> None:
        self._tasks, self._workers, self._device, self._stage = tasks, workers, device, stage
        self._plans = [plan_of(task, cache) for task in tasks]
        self._failed: dict[int, str] = {}
        self._known: dict[int, dict[Protocol, Known]] = {}
        self._thresholds: dict[int, dict[Protocol, HealthyThresholds]] = {}

    def own_raws(self) -> None:
        """An ensemble's raw maps of healthy scans rest on statistics without that person: made once, and kept."""
        jobs = [
            (number, _Job("raw", plan, scores=task.model.scores, index=index))
            for number, (task, plan) in enumerate(zip(self._tasks, self._plans, strict=True))
            if len(task.model.parts) > 1 and len(plan.healthy) >= FEWEST_HEALTHY
            for index in range(len(plan.healthy))
        ]
        for _ in self._run(jobs, "combining healthy scans"):
            pass

    def protocols(self) -> None:
        """How each task's maps are to be read."""
        jobs = [
            (number, _Job("protocols", plan, scores=task.model.scores, smoothings=task.model.smoothings))
            for number, (task, plan) in enumerate(zip(self._tasks, self._plans, strict=True))
        ]
        for number, _, found in self._run(jobs, "calibrations"):
            self._known[number] = found

    def summaries(self) -> None:
        """The thresholds that the healthy scans of a set give."""
        jobs = []
        for number, known in sorted(self._known.items()):
            protocols = tuple(protocol for protocol in known if protocol.by_set)
            if protocols:
                plan = self._plans[number]
                jobs += [
                    (number, _Job("summary", plan, protocols=protocols, index=index))
                    for index in range(len(plan.healthy))
                ]
        found: dict[int, dict[int, dict]] = {}
        for number, job, made in self._run(jobs, "calibrating on healthy scans"):
            found.setdefault(number, {})[job.index] = made
        for number, made in found.items():
            healthy = self._plans[number].healthy
            if len(made) == len(healthy):
                self._thresholds[number] = {
                    protocol: HealthyThresholds(
                        [made[index][protocol] for index in range(len(healthy))], [case.patient for case in healthy]
                    )
                    for protocol in made[0]
                }

    def readings(self) -> Iterator[tuple[int, Measurement | str]]:
        """Every scan of every task; a task's measurement as soon as its last scan is read."""
        jobs = []
        for number in sorted(set(self._known) - set(self._failed)):
            jobs += [(number, job) for job in self._read_jobs(number)]
        wanted = {number: sum(1 for other, _ in jobs if other == number) for number in {n for n, _ in jobs}}
        read: dict[int, list[tuple[_Job, Any]]] = {}
        for number, job, made in self._run(jobs, "reading"):
            read.setdefault(number, []).append((job, made))
            if len(read[number]) == wanted[number]:
                yield number, self._measurement(number, read.pop(number))
        yield from self._failed.items()

    def clean(self) -> None:
        """Remove what was kept between the steps."""
        _LAST.clear()
        for plan in self._plans:
            release(plan.keep)

    def _read_jobs(self, number: int) -> Iterator[_Job]:
        plan, known, thresholds = self._plans[number], self._known[number], self._thresholds.get(number, {})
        of_patient: dict[str, tuple[int, ...]] = {}
        for index, case in enumerate(plan.healthy):
            of_patient[case.patient] = (*of_patient.get(case.patient, ()), index)
        for position, case in enumerate(self._tasks[number].scans):
            without = of_patient.get(case.patient, ())
            levers = {
                protocol: calibration.levers(thresholds.get(protocol) if protocol.by_set else None, without)
                for protocol, calibration in known.items()
            }
            yield _Job("read", plan, index=position, case=case, levers=levers)

    def _run(self, jobs: Sequence[tuple[int, _Job]], what: str) -> Iterator[tuple[int, _Job, Any]]:
        """The results of jobs whose task has not failed before; a failure is one of the whole task."""
        total = {number: 0 for number, _ in jobs}
        for number, _ in jobs:
            total[number] += 1
        done = dict.fromkeys(total, 0)
        if not jobs:
            return
        for position, made in map_in_processes(_step, [job for _, job in jobs], min(self._workers, len(jobs))):
            number, job = jobs[position]
            done[number] += 1
            self._stage(f"{what}: {self._tasks[number].title}", done[number], total[number])
            if isinstance(made, WorkerDied):
                made = _Failure("expected a reading that fits into memory, its process died; use fewer workers")
            if isinstance(made, _Failure):
                self._failed.setdefault(number, made.reason)
            elif number not in self._failed:
                yield number, job, made

    def _measurement(self, number: int, read: list[tuple[_Job, Any]]) -> Measurement:
        task, plan, known = self._tasks[number], self._plans[number], self._known[number]
        read.sort(key=lambda pair: pair[0].index)
        costs: list[Costs] = [made[1] for _, made in read]
        readings: list[Mapping[str, Reading]] = [made[0] for _, made in read]
        seconds = [made[2] for _, made in read]
        protocols, counts, healthy_counts = {}, {}, {}
        for protocol, calibration in known.items():
            mine = [reading[protocol.name] for reading in readings]
            healthy, ill = mine[: len(plan.healthy)], mine[len(plan.healthy) :]
            # A label that is empty says that there is nothing to find: all that is marked is false.
            healthy += [_negative(reading) for reading in ill if reading.entry.get("native_lesions") == 0]
            ill = [reading for reading in ill if reading.entry.get("native_lesions") != 0]
            protocols[protocol.name] = _protocol_record(task, protocol, calibration, healthy, ill)
            if ill:
                counts[protocol.name] = np.stack([reading.counts for reading in ill])
            if healthy:
                healthy_counts[protocol.name] = np.stack([reading.counts[1] for reading in healthy])
        cases = task.cases
        record = {
            "version": VERSION,
            "model": {key: value for key, value in task.model.about.items() if key != "default"},
            "set": {
                "name": cases.name,
                "key": cases.key,
                "title": cases.title,
                "modality": cases.modality,
                "split": cases.split,
                "licence": cases.licence,
                "slices": cases.level is not None,
                "skipped": [dict(item) for item in cases.skipped],
            },
            "default": task.model.about["default"],
            "device": self._device,
            "threads": 1 if self._workers else torch.get_num_threads(),
            "seconds_to_analyse": float(np.median([cost.seconds for cost in costs])),
            "processor_seconds_to_analyse": float(np.median([cost.processor_seconds for cost in costs])),
            "peak_memory_mb": max(cost.peak_memory_mb for cost in costs),
            "seconds_to_prepare": float(np.median(seconds)),
            "protocols": protocols,
        }
        return Measurement(record, counts, healthy_counts)


def plan_of(task: Task, cache: Path) -> ReadingPlan:
    """What the reading of a task needs. Its folder ``keep`` is this plan's alone, to be given to ``release``."""
    about = f"{task.model.model_hash}/{task.cases.key}/{task.cases.name}/{cache}"
    keep = claim(Path(cache) / _HEALTHY, hashlib.sha256(about.encode()).hexdigest()[:24])
    healthy = references(task.cases.healthy)
    return ReadingPlan(
        keep.name,
        task.model.folder,
        task.model.model_hash,
        Path(cache),
        keep,
        healthy,
        task.cases.level,
        task.model.calibration,
    )


def _negative(reading: Reading) -> Reading:
    """A labelled scan without a lesion, recorded like a healthy one."""
    kept = ("id", "patient", "attributes", "scan_score", "p_value", "tails", "points")
    entry = {key: reading.entry[key] for key in kept}
    entry["froc_false_positives"] = reading.entry["froc"]["false_positives"]
    return Reading(entry, reading.counts)


def _protocol_record(
    task: Task, protocol: Protocol, known: Known, healthy: Sequence[Reading], cases: Sequence[Reading]
) -> dict[str, Any]:
    entries = [reading.entry for reading in (*cases, *healthy)]
    calibration = dict(task.model.about["calibration"])
    if protocol.calibration == "set":
        calibration = {"id": None, "kind": "set", "scans": len(healthy)}
    elif known.shared.scans:
        said = (
            f"{'' if known.shared.counted else 'about '}{known.shared.scans} of the {len(healthy)} healthy scans of "
            "this set are among those that the model was calibrated on: their false alarms, and the scan scores "
            "against them, look better than they are; the row calibrated on the set leaves everybody's own scans out "
            f"({UNSEEN})"
        )
        _LOG.warning("%s: %s", task.title, said)
        calibration["warnings"] = [*calibration.get("warnings", ()), said]
    return {
        "score": protocol.score,
        "smoothing": protocol.smoothing,
        "calibration": calibration,
        "leave_one_out": protocol.left_out,
        "points": {
            name: {
                "threshold": float(np.mean([entry["points"][name]["threshold"] for entry in entries])),
                "target": getattr(point, "target_ml", None) if point.target_fpr is None else point.target_fpr,
                "unit": "ml" if point.target_fpr is None else "share of voxels",
            }
            for name, point in known.points.items()
        },
        "froc_thresholds": list(np.mean([entry.pop("tails") for entry in entries], axis=0)),
        "cases": [reading.entry for reading in cases],
        "healthy": [reading.entry for reading in healthy],
    }


_LAST: list[tuple[str, Reader]] = []  # of this process: consecutive jobs are of one task


def _step(job: _Job) -> Any:
    """Runs in a worker."""
    try:
        reader = _reader(job.plan)
        if job.step == "raw":
            for score in job.scores:
                reader.reference.own_raw(score, job.index)
            return True
        if job.step == "protocols":
            return reader.protocols(job.scores, job.smoothings)
        if job.step == "summary":
            return {protocol: reader.summary(protocol, job.index) for protocol in job.protocols}
        healthy = job.index if job.index < len(job.plan.healthy) else None
        return reader.read(job.case, job.levers, healthy)
    except Exception as error:  # one model's fault is no reason to lose the others' hours
        _LOG.warning("a reading failed", exc_info=True)
        return _Failure(f"{type(error).__name__}: {error}")


def _reader(plan: ReadingPlan) -> Reader:
    if not _LAST or _LAST[0][0] != plan.name:
        _LAST.clear()
        _LAST.append((plan.name, Reader(plan)))
    return _LAST[0][1]
