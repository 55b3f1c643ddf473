"""Training on a site's own healthy scans, from the list of scans to a published version of a model.

Prepare (cached) -> split by patient -> train -> calibrate on the held-out scans -> compare with the model that serves
-> card and manifest -> publish. What serves is not touched before the last step, which is a rename.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
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
    Ancestor,
    keyed_hash,
    site_key,
)
from monailabel_app.training.monitor import Monitor
from monailabel_app.training.run_folders import new_run_folder, note_latest_run
from monailabel_app.training.split import MIN_HELD_OUT_PATIENTS, MIN_TRAINING_PATIENTS, split_by_patient
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import open_model_folder

from .config_io import config_from_plain, config_to_plain
from .predict import find_model
from .prepared_cache import ScanSource, prepare_sources, purge
from .site_options import SCRATCH, SERVING, SiteOptions
from .site_privacy import feasibility_lines
from .site_publish import SiteResult, Stage, publish_run
from .training_run import RESULT, Plan, PlannedScan, run_plan, unfinished_run

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
) -> SiteResult:
    """Train, calibrate, compare and publish.

    contaminated: scans not given because they carry a non-empty label; left_out: others not given, by reason.
    plan_only: stop once the run folder is ready for ``train-worker`` (several machines). say: gets the lines to be read
    before training begins.

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
            plan = replace(plan, options=_with_new_limits(plan.options, options))
        else:
            plan = _make_plan(root, scans, options, contaminated, left_out or {}, _shown_by(monitor, stage))
        plan.write(run_folder)
        if options.privacy is not None:
            for line in feasibility_lines(plan):
                say(line)
    if plan_only:
        return SiteResult(options.name, "", False, "planned, not trained", run_folder, run_folder, {}, None)
    return carry_out(root, run_folder, plan, resume=resumed, stage=stage, progress=progress, started=started)


def carry_out(
    root: Path,
    run_folder: Path,
    plan: Plan,
    *,
    resume: bool = False,
    stage: Stage | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    started: float | None = None,
) -> SiteResult:
    """Train, calibrate, compare and publish as ``plan.json`` of the run folder says. Raises AnomalyAppError.

    started: of ``time.monotonic`` when the training was asked for.
    """
    started = time.monotonic() if started is None else started
    state = _train(root, run_folder, plan, resume, progress)
    with Monitor(run_folder) as monitor:
        result = publish_run(root, run_folder, plan, state, _shown_by(monitor, stage), time.monotonic() - started)
        (run_folder / RESULT).write_text(json.dumps(result.to_json(), indent=1))
        monitor.finished(result.summary() | {"total_seconds": time.monotonic() - started})
    return result


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


def _with_new_limits(planned: SiteOptions, asked: SiteOptions) -> SiteOptions:
    """A resumed run may be longer and run elsewhere; everything else is as it was planned."""
    names = ("minutes", "device", "processes", "promote")
    return replace(planned, **{name: getattr(asked, name) for name in names})


def _make_plan(
    root: Path,
    scans: Sequence[HealthyScanFile],
    options: SiteOptions,
    contaminated: int,
    left_out: Mapping[str, int],
    tell: Stage,
) -> Plan:
    key = site_key(root)
    start, start_folder, config = _start(root, options)
    if start_folder:
        refuse_forgotten_weights(root, root / start_folder)
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
    split = split_by_patient(patients, options.validation_share, key=key)

    def planned(rows: Sequence[int]) -> tuple[PlannedScan, ...]:
        return tuple(PlannedScan(patients[i], cache.ids[i], cache.digests[i]) for i in rows)

    return Plan(
        options=options,
        config=config_to_plain(config),
        train=planned(split.training),
        held_out=planned(split.held_out),
        start=start,
        start_folder=start_folder,
        contaminated=contaminated,
        left_out=counts,
    )


def _without_forgotten(root: Path, cache: TrainingCache, counts: dict[str, int]) -> TrainingCache:
    """Without scans of forgotten patients that came back under another id; their prepared copies go again."""
    key, forgotten = site_key(root), forgotten_contents(root)
    again = [i for i, digest in enumerate(cache.digests) if keyed_hash(key, "content", digest) in forgotten]
    if not again:
        return cache
    purge(root / "cache", [cache.digests[i] for i in again])
    counts[TO_BE_FORGOTTEN] = counts.get(TO_BE_FORGOTTEN, 0) + len(again)
    return cache.select([i for i in range(len(cache)) if i not in set(again)])


def _start(root: Path, options: SiteOptions) -> tuple[Ancestor | None, str, Any]:
    """Where training begins: the model, its folder under ``root``, and the method's configuration."""
    method = load_method(options.method)
    folder = None
    if options.start_from == SERVING:
        folder = versions.current(root, options.name)
    elif options.start_from != SCRATCH:
        folder = find_model(options.start_from, root)
    if folder is None:
        if options.privacy is not None:
            raise InvalidSettings(
                "expected public weights to start a private training from, got none: a few hundred private scans are "
                "too few from scratch; choose start_from, for example ddpm_t1"
            )
        return None, "", method.PRESETS[options.preset]
    opened = open_model_folder(folder)
    if opened.config.get("method") != options.method:
        raise InvalidSettings(
            f"expected weights of {options.method} to start from, got {opened.id} of {opened.config.get('method')}; "
            f"choose another start_from or model_name"
        )
    config = config_from_plain(method.Config, dict(opened.config["config"]))
    try:
        relative = str(folder.relative_to(root))
    except ValueError as error:
        raise InvalidSettings(
            "expected a model of this app to start from, got a folder elsewhere: copy it into model/"
        ) from error
    return _ancestor(root, folder, opened.hash), relative, config


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
