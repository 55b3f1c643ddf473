"""Training on a site's own healthy scans, from the list of scans to a published version of a model.

Prepare (cached) -> split by patient -> train -> calibrate on the held-out scans -> compare with the model that serves
-> card and manifest -> publish. What serves is not touched before the last step, which is a rename.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.registry import load_method
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.checkpoint import TrainingState, load_state
from monailabel_app.training.distributed import launch
from monailabel_app.training.forgotten import forgotten_contents, forgotten_hashes, refuse_forgotten_weights
from monailabel_app.training.healthy_loop import TrainProgress
from monailabel_app.training.manifest import (
    MANIFEST,
    Ancestor,
    Manifest,
    keyed_hash,
    site_key,
)
from monailabel_app.training.monitor import Monitor
from monailabel_app.training.run_folders import new_run_folder, note_latest_run
from monailabel_app.training.split import MIN_HELD_OUT_PATIENTS, MIN_TRAINING_PATIENTS, Split, split_by_patient
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import open_model_folder

from .config_io import config_from_plain, config_to_plain
from .prepared_cache import ScanSource, prepare_sources, purge
from .site_options import SiteOptions
from .site_privacy import feasibility_lines
from .site_publish import SiteResult, Stage, publish_run
from .site_start import start_folder
from .training_run import RESULT, Plan, PlannedScan, run_plan, sole_worker, unfinished_run

_LOG = logging.getLogger(__name__)
TO_BE_FORGOTTEN = "to be forgotten"
MIN_PATIENTS = MIN_HELD_OUT_PATIENTS + MIN_TRAINING_PATIENTS


@dataclass(frozen=True)
class HealthyScanFile:
    """A scan that somebody called healthy: a file or a DICOM folder, the scan's id, and whose it is."""

    path: Path
    id: str
    patient: str


def check_enough(patients: int, *, left_out: Mapping[str, int] | None = None) -> None:
    """Raises TrainingFailed that says how many patients there are, how many are needed, and what was left out."""
    if patients >= MIN_PATIENTS:
        return
    others = ", ".join(f"{count} {reason}" for reason, count in (left_out or {}).items() if count)
    others = f" (left out: {others})" if others else ""
    raise TrainingFailed(
        f"expected healthy scans of at least {MIN_PATIENTS} patients ({MIN_TRAINING_PATIENTS} to train on, "
        f"{MIN_HELD_OUT_PATIENTS} held out), got {patients}{others}; mark scans as healthy: submit an empty "
        "label, or start the server with --conf healthy all or --conf healthy_list FILE"
    )


def train_site(
    root: Path,
    scans: Sequence[HealthyScanFile],
    options: SiteOptions,
    *,
    contaminated: int = 0,
    left_out: Mapping[str, int] | None = None,
    stage: Stage | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    plan_only: bool = False,
    say: Callable[[str], None] = _LOG.info,
    still_healthy: Callable[[], Iterable[str]] | None = None,
) -> SiteResult:
    """Train, calibrate, compare and publish.

    contaminated: scans not given because they carry a non-empty label; left_out: others not given, by reason.
    plan_only: stop once the run folder is ready for ``train-worker`` (several machines). say: gets the lines to be read
    before training begins. still_healthy: see ``carry_out``.

    Raises AnomalyAppError; the model that serves is untouched then, and a run with a checkpoint goes on with ``resume``
    as long as all its scans are still among ``scans``.
    """
    root = Path(root)
    run_folder = unfinished_run(root, options.name, options.method) if options.resume else None
    if options.resume and run_folder is None:
        raise TrainingFailed(f"expected an unfinished run of {options.name} to resume, found none; start a new one")
    resumed = run_folder is not None
    if run_folder is None:
        check_enough(len({scan.patient for scan in scans}), left_out=left_out)
        run_folder = new_run_folder(root, options.name)
    note_latest_run(root, options.method, run_folder)
    started = time.monotonic()
    # A monitor marks the run as failed when an error leaves it.
    with Monitor(run_folder) as monitor:
        if resumed:
            plan = Plan.read(run_folder)
            _check_still_healthy(root, plan, scans)
            plan = replace(plan, options=_on_this_machine(plan.options, options))
        else:
            plan = _make_plan(root, scans, options, contaminated, left_out or {}, _shown_by(monitor, stage))
        plan.write(run_folder)
        if plan.options.privacy is not None:
            for line in feasibility_lines(plan):
                say(line)
    if plan_only:
        return SiteResult(options.name, "", False, "planned, not trained", run_folder, run_folder, {}, None)
    return carry_out(
        root,
        run_folder,
        plan,
        resume=resumed,
        stage=stage,
        progress=progress,
        started=started,
        still_healthy=still_healthy,
    )


def carry_out(
    root: Path,
    run_folder: Path,
    plan: Plan,
    *,
    resume: bool = False,
    stage: Stage | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    started: float | None = None,
    still_healthy: Callable[[], Iterable[str]] | None = None,
) -> SiteResult:
    """Train, calibrate, compare and publish as ``plan.json`` of the run folder says. Raises AnomalyAppError.

    started: of ``time.monotonic`` when the training was asked for. still_healthy: the ids of the scans that are healthy
    now; asked before publishing, because a reader may have found a lesion while the training ran.
    """
    started = time.monotonic() if started is None else started
    with sole_worker(run_folder):
        state = _train(root, run_folder, plan, resume, progress)
        with Monitor(run_folder) as monitor:
            lost = _no_longer_healthy(root, plan, still_healthy) if still_healthy is not None else 0
            tell, seconds = _shown_by(monitor, stage), time.monotonic() - started
            result = publish_run(root, run_folder, plan, state, tell, seconds, lost=lost)
            (run_folder / RESULT).write_text(json.dumps(result.to_json(), indent=1))
            monitor.finished(result.summary() | {"total_seconds": time.monotonic() - started})
    return result


def _no_longer_healthy(root: Path, plan: Plan, still_healthy: Callable[[], Iterable[str]]) -> int:
    key = site_key(root)
    healthy = {keyed_hash(key, "scan", name) for name in still_healthy()}
    return sum(scan.scan not in healthy for scan in (*plan.train, *plan.held_out))


def _shown_by(monitor: Monitor, stage: Stage | None) -> Stage:
    def tell(name: str, done: int, total: int) -> None:
        monitor.stage(name, done, total)
        if stage is not None:
            stage(name, done, total)

    return tell


def _check_still_healthy(root: Path, plan: Plan, scans: Sequence[HealthyScanFile]) -> None:
    """Since the run began a scan may have got a lesion label, or its patient may have asked to be forgotten."""
    key, forgotten = site_key(root), forgotten_hashes(root)
    healthy = {keyed_hash(key, "scan", scan.id) for scan in scans}
    planned = (*plan.train, *plan.held_out)
    lost = sum(scan.scan not in healthy or scan.patient in forgotten for scan in planned)
    if lost:
        raise TrainingFailed(
            f"expected every scan of the run to be healthy still, got {lost} of {len(planned)} that are not any more; "
            "start a new run without resume"
        )


def _on_this_machine(planned: SiteOptions, asked: SiteOptions) -> SiteOptions:
    """A resumed run may run elsewhere; everything else is as it was planned. Raises InvalidSettings."""
    if asked.privacy is not None and asked.privacy != planned.privacy:
        raise InvalidSettings("expected the privacy budget of the run to resume, got another one; start a new run")
    return replace(planned, device=asked.device, processes=asked.processes)


def _make_plan(
    root: Path,
    scans: Sequence[HealthyScanFile],
    options: SiteOptions,
    contaminated: int,
    left_out: Mapping[str, int],
    tell: Stage,
) -> Plan:
    key = site_key(root)
    start, start_folder_name, config = _start(root, options)
    if start_folder_name:
        refuse_forgotten_weights(root, root / start_folder_name)
    forgotten = forgotten_hashes(root)
    sources, counts = [], dict(left_out)
    for scan in scans:
        patient = keyed_hash(key, "patient", scan.patient)
        if patient in forgotten:
            counts[TO_BE_FORGOTTEN] = counts.get(TO_BE_FORGOTTEN, 0) + 1
        else:
            sources.append(ScanSource(Path(scan.path), keyed_hash(key, "scan", scan.id), patient))
    check_enough(len({source.patient for source in sources}), left_out=counts)
    made = prepare_sources(
        sources,
        options.modality,
        root / "cache",
        workers=options.workers,
        progress=lambda d, t: tell("preparing", d, t),
    )
    if made.refused:
        counts["refused by the preparation"] = len(made.refused)
        for _, reason in made.refused:
            _LOG.warning("a scan is left out: %s", reason)
    cache = _without_forgotten(root, made.cache, counts)
    patients = cache.patients
    check_enough(len(set(patients)), left_out=counts)
    ancestors, inherited = _lineage(root, start, start_folder_name)
    split = split_by_patient(patients, options.validation_share, key=key)
    split = _unseen(split, patients, frozenset(inherited))

    def planned(rows: Sequence[int]) -> tuple[PlannedScan, ...]:
        return tuple(PlannedScan(patients[i], cache.ids[i], cache.digests[i]) for i in rows)

    return Plan(
        options=options,
        config=config_to_plain(config),
        train=planned(split.training),
        held_out=planned(split.held_out),
        start=start,
        start_folder=start_folder_name,
        contaminated=contaminated,
        left_out=counts,
        ancestors=ancestors,
        inherited=inherited,
    )


def _without_forgotten(root: Path, cache: TrainingCache, counts: dict[str, int]) -> TrainingCache:
    """Without patients forgotten while their scans were prepared, and forgotten scans that came back under another id.

    Their prepared copies go again.
    """
    key, contents, patients = site_key(root), forgotten_contents(root), forgotten_hashes(root)
    again = [
        i
        for i, digest in enumerate(cache.digests)
        if cache.patients[i] in patients or keyed_hash(key, "content", digest) in contents
    ]
    if not again:
        return cache
    purge(root / "cache", [cache.digests[i] for i in again])
    counts[TO_BE_FORGOTTEN] = counts.get(TO_BE_FORGOTTEN, 0) + len(again)
    return cache.select([i for i in range(len(cache)) if i not in set(again)])


def _start(root: Path, options: SiteOptions) -> tuple[Ancestor | None, str, Any]:
    """Where training begins: the model, its folder under ``root``, and the method's configuration."""
    method = load_method(options.method)
    folder = start_folder(root, options)
    if folder is None:
        return None, "", method.PRESETS[options.preset]
    opened = open_model_folder(folder)
    config = config_from_plain(method.Config, dict(opened.config["config"]))
    return _ancestor(root, folder, opened.hash), str(folder.relative_to(root)), config


def _lineage(root: Path, start: Ancestor | None, folder: str) -> tuple[tuple[Ancestor, ...], tuple[str, ...]]:
    """The start model's ancestors, and the patients that it or they were trained on."""
    if start is None or not (root / folder / MANIFEST).is_file():
        return (), ()
    nothing = Manifest(method="", modality="", site="", train=(), held_out=())
    known = nothing.started_from(start, Manifest.read(root / folder))
    return known.ancestors, known.inherited


def _unseen(split: Split, patients: Sequence[str], seen: frozenset[str]) -> Split:
    """Scans of patients that the start weights were trained on cannot be held out. Raises TrainingFailed."""
    held_out = [i for i in split.held_out if patients[i] not in seen]
    if len({patients[i] for i in held_out}) < MIN_HELD_OUT_PATIENTS:
        raise TrainingFailed(
            f"expected at least {MIN_HELD_OUT_PATIENTS} held-out patients that the start weights have not seen, got "
            f"{len({patients[i] for i in held_out})}; add healthy scans, or start from scratch or from a shipped model"
        )
    moved = set(split.held_out) - set(held_out)
    return Split(tuple(sorted({*split.training, *moved})), tuple(held_out))


def _ancestor(root: Path, folder: Path, digest: str) -> Ancestor:
    if folder.parent.name == "versions":
        return Ancestor(folder.parent.parent.name, folder.name, digest)
    shipped = folder.parent == root / "model_weights"
    return Ancestor(folder.name, versions.SHIPPED_VERSION if shipped else "", digest)


def _train(
    root: Path,
    run_folder: Path,
    plan: Plan,
    resume: bool,
    progress: Callable[[TrainProgress], None] | None,
) -> TrainingState:
    """On one device in this process; on several in processes of their own, whose first writes the progress."""
    processes = plan.options.processes
    if processes == 0:
        processes = max(1, torch.cuda.device_count())
    if processes > 1 and plan.options.privacy is None:
        launch(["train-worker", str(root), str(run_folder), *(["--resume"] if resume else [])], processes)
        return load_state(run_folder)
    with Monitor(run_folder) as monitor:
        return run_plan(root, run_folder, resume=resume, monitor=monitor, progress=progress)
