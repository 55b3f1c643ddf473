"""The run folder of one training: its plan, and the step that turns the plan into weights.

A plan holds everything that a resumed run must not decide anew: which prepared scans train and which are held out, the
network's configuration and the weights it starts from. It names scans by keyed hashes and by the digests of their
prepared entries, never by id or path.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.files import replace_file
from monailabel_app.registry import load_method
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.checkpoint import LAST, TrainingState
from monailabel_app.training.distributed import rank, world_size
from monailabel_app.training.healthy_loop import TrainProgress, train
from monailabel_app.training.manifest import Ancestor
from monailabel_app.training.monitor import Monitor
from monailabel_app.training.privacy import train_private
from monailabel_app.weights.model_folder import open_model_folder

from .config_io import config_from_plain
from .held_out_quality import HeldOutQuality
from .prepared_store import PreparedStore
from .site_options import SiteOptions

_LOG = logging.getLogger(__name__)
PLAN, RESULT = "plan.json", "result.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class PlannedScan:
    """A prepared scan: keyed hashes of patient and scan, and the digest that finds its prepared entry."""

    patient: str
    scan: str
    digest: str


@dataclass(frozen=True)
class Plan:
    """What one run does. config: of the method, as plain values. start: the model whose weights it starts from.

    start_folder: where those weights are, relative to the app folder; empty for random ones. counts: scans that were
    left out, by reason, and those left out because of a non-empty label (``contaminated``). ancestors, inherited: the
    start model's own lineage, as it was when the run was planned: the model may be gone when the run ends.
    """

    options: SiteOptions
    config: Mapping[str, Any]
    train: tuple[PlannedScan, ...]
    held_out: tuple[PlannedScan, ...]
    start: Ancestor | None = None
    start_folder: str = ""
    contaminated: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    ancestors: tuple[Ancestor, ...] = ()
    inherited: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def write(self, run_folder: Path) -> None:
        """``plan.json``, by rename."""
        run_folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self) | {"options": self.options.to_json()}
        replace_file(run_folder / PLAN, json.dumps(values, indent=1, allow_nan=False), lasting=True)

    @classmethod
    def read(cls, run_folder: Path) -> Plan:
        """The plan of a run. Raises TrainingFailed when there is none or it is damaged."""
        try:
            values = json.loads((run_folder / PLAN).read_text())
            for part in ("train", "held_out"):
                values[part] = tuple(PlannedScan(**scan) for scan in values[part])
            values["options"] = SiteOptions.from_json(values["options"])
            values["start"] = Ancestor(**values["start"]) if values["start"] else None
            values["ancestors"] = tuple(Ancestor(**ancestor) for ancestor in values.get("ancestors", ()))
            values["inherited"] = tuple(values.get("inherited", ()))
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingFailed(
                f"expected a readable {PLAN} in the run folder, got {type(error).__name__}; start a new run"
            ) from error

    def cache(self, root: Path, scans: tuple[PlannedScan, ...]) -> TrainingCache:
        """The prepared brains of some of its scans. Raises TrainingFailed when entries are gone."""
        store = PreparedStore(root / "cache")
        stored = [store.read(scan.digest) for scan in scans]
        missing = sum(scan is None for scan in stored)
        if missing:
            raise TrainingFailed(
                f"expected the prepared scans of the run in cache/prepared, {missing} of {len(scans)} are gone; start "
                "a new run, which prepares them again"
            )
        return TrainingCache(
            torch.stack([torch.from_numpy(scan.image) for scan in stored]),
            torch.stack([torch.from_numpy(scan.brain_mask) for scan in stored]),
            tuple(scan.scan for scan in scans),
            self.options.modality,
            tuple(scan.patient for scan in scans),
            tuple(scan.digest for scan in scans),
        )


def unfinished_run(root: Path, name: str, method: str) -> Path | None:
    """The newest run of a model that has a checkpoint, no result yet, and nobody working on it."""
    folder = root / "runs" / name
    if not folder.is_dir():
        return None
    for run in sorted(folder.iterdir(), reverse=True):
        if (run / PLAN).is_file() and (run / LAST).is_file() and not (run / RESULT).is_file():
            try:
                if Plan.read(run).options.method == method and not is_busy(run):
                    return run
            except TrainingFailed as error:
                _LOG.warning("a run is passed over: %s", error)
    return None


@contextmanager
def sole_worker(run_folder: Path) -> Iterator[None]:
    """Hold a run for this process; the system lets go of it when the process dies. Raises TrainingFailed."""
    try:
        with FileLock(run_folder / _LOCK, timeout=0):
            yield
    except Timeout as error:
        raise TrainingFailed(
            "expected a run that nobody works on, got one that another process is training; wait for it or stop it"
        ) from error


def is_busy(run_folder: Path) -> bool:
    """Whether a process is working on a run."""
    try:
        with FileLock(run_folder / _LOCK, timeout=0):
            return False
    except Timeout:
        return True


def run_plan(
    root: Path,
    run_folder: Path,
    *,
    resume: bool,
    monitor: Monitor | None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainingState:
    """Train as planned; in a process group every rank calls this, and only rank 0 gives a monitor.

    Raises TrainingFailed; the last checkpoint stays.
    """
    plan = Plan.read(run_folder)
    options = plan.options
    method = load_method(options.method)
    config = config_from_plain(method.Config, dict(plan.config))
    begins = plan.start_folder and (options.privacy is not None or not resume)
    start = open_model_folder(root / plan.start_folder).weights() if begins else None
    device = device_of(options)
    settings = options.train_settings(device)
    healthy = plan.cache(root, plan.train)

    def tell(now: TrainProgress) -> None:
        if monitor is not None:
            monitor.training(now)
        if progress is not None:
            progress(now)

    if options.privacy is not None:
        return train_private(
            options.method,
            config,
            healthy,
            settings,
            options.privacy,
            run_folder,
            start_from=start,
            resume=resume,
            progress=tell,
        )
    held_out = plan.cache(root, plan.held_out)
    quality = HeldOutQuality(held_out, seed=0)

    def evaluate(network: torch.nn.Module) -> Mapping[str, float]:
        if monitor is not None:
            monitor.figure("held-out scans", quality.pictures(options.method, config, network, device))
        return quality.quick(options.method, config, network, device)

    return train(
        options.method,
        config,
        healthy,
        held_out,
        settings,
        run_folder,
        resume=resume,
        start_from=start,
        progress=tell,
        evaluate=evaluate,
    )


def work(root: Path, run_folder: Path, *, resume: bool) -> None:
    """One process of a training on several GPUs or machines; the first one reports. Raises TrainingFailed."""
    if Plan.read(run_folder).options.privacy is not None and world_size() > 1:
        raise InvalidSettings("expected one process for a private training, got several: each would spend the budget")
    if rank() == 0:
        with Monitor(run_folder) as monitor:
            run_plan(root, run_folder, resume=resume, monitor=monitor)
    else:
        run_plan(root, run_folder, resume=resume, monitor=None)


def device_of(options: SiteOptions) -> str:
    """``auto`` is a GPU where there is one; which of several is decided by the process group."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"
