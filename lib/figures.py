"""The state of the server at one moment, for Prometheus: asked for at each scrape, nothing is counted along.

A scrape must cost milliseconds and hold nobody up. What needs a walk over files is remembered for a minute, and an
archive is never asked.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils import app as platform_app
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

import monailabel_app
from lib import audit, background
from lib.jobs import QUEUED, RUNNING
from monailabel_app.audit import log_file
from monailabel_app.audit.log import read_head, rotated
from monailabel_app.monitoring.instruments import REGISTRY, bounded

logger = logging.getLogger(__name__)

_REMEMBERED_SECONDS = 60.0
# Tags that this app and its viewers give labels; others are of users and could be anything.
_TAGS = {"final", "original", "anomaly_map", "reconstruction", "uncertainty_map"}
_PROCESS = ProcessCollector(registry=None)


class _Remembered:
    """A figure that costs something, worked out once a minute."""

    def __init__(self, work_out: Callable[[Any], Any]):
        self._work_out = work_out
        self._held: tuple[float, Any] | None = None
        self._lock = threading.Lock()

    def of(self, argument: Any) -> Any:
        with self._lock:
            if self._held is None or time.monotonic() - self._held[0] > _REMEMBERED_SECONDS:
                self._held = (time.monotonic(), self._work_out(argument))
            return self._held[1]


class _Lines:
    """The lines of files that only grow, counted by reading what has come since."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def of(self, files: list[Path]) -> int:
        with self._lock:
            held = {}
            for path in files:
                with path.open("rb") as file:
                    number = os.fstat(file.fileno()).st_ino
                    at, count = self._held.get(number, (0, 0))
                    if os.fstat(file.fileno()).st_size < at:
                        at, count = 0, 0
                    file.seek(at)
                    while block := file.read(2**20):
                        count, at = count + block.count(b"\n"), at + len(block)
                held[number] = at, count
            self._held = held
            return sum(count for _, count in held.values())


_audit_lines = _Lines()
_disk_analyses = _Remembered(lambda store: store.held() if store is not None else (0, 0))


class Everything:
    """What ``prometheus_client`` calls a registry: the counted figures and those of this moment."""

    def collect(self) -> Iterator[Metric]:
        """Never raises: a part that cannot be told is left out, and ``anomaly_scrape_faults`` says how many were."""
        yield from REGISTRY.collect()
        yield from _PROCESS.collect()
        faults = 0
        app = serving_app()
        parts = [_about_process] + ([lambda part=part: part(app) for part in _OF_APP] if app is not None else [])
        for part in parts:
            try:
                yield from list(part())
            except Exception as error:
                # A folder that has gone or an unusual datastore must not take all other figures with it.
                logger.warning("figures could not be told: %s", type(error).__name__)
                faults += 1
        yield _gauge("anomaly_scrape_faults", "Groups of figures that this scrape could not tell", faults)


def serving_app() -> MONAILabelApp | None:
    """The app that serves; None while it is being loaded. Never loads one."""
    loaded = list(platform_app.apps.values())
    return loaded[-1] if loaded else None


def folders(app: MONAILabelApp) -> dict[str, Path]:
    """The folders that the server writes to, by what they are for."""
    root, datastore = Path(app.app_dir), app.datastore()
    store = getattr(app.analyses, "store", None)
    named = {
        "model": root / "model",
        "runs": root / "runs",
        "logs": root / "logs",
        "cache": store.folder if store is not None else root / "cache",
        "temporary": Path(tempfile.gettempdir()),
    }
    path = getattr(datastore, "_datastore_path", "")
    named |= {"datastore": Path(path)} if path else {}
    sessions = app.sessions()
    return named | ({"sessions": Path(sessions.store_path)} if sessions is not None else {})


def free_bytes(path: Path) -> tuple[int, int]:
    """Free and all bytes of the disk a folder is, or would be, on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _about_process() -> Iterator[Metric]:
    yield InfoMetricFamily("anomaly_build", "Version of this app", value={"version": monailabel_app.__version__})
    yield _gauge("anomaly_process_threads", "Threads of the server's process", psutil.Process().num_threads())
    torch = sys.modules.get("torch")
    # Asking a GPU that nobody has used yet would start CUDA on it.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    free = GaugeMetricFamily("anomaly_gpu_free_bytes", "Free memory of a GPU", labels=["device"])
    total = GaugeMetricFamily("anomaly_gpu_total_bytes", "Memory of a GPU", labels=["device"])
    mine = GaugeMetricFamily("anomaly_gpu_allocated_bytes", "GPU memory that tensors take", labels=["device"])
    peak = GaugeMetricFamily("anomaly_gpu_peak_bytes", "Most GPU memory that tensors took", labels=["device"])
    for index in range(torch.cuda.device_count()):
        name, memory = f"cuda{index}", torch.cuda.mem_get_info(index)
        free.add_metric([name], memory[0])
        total.add_metric([name], memory[1])
        mine.add_metric([name], torch.cuda.memory_allocated(index))
        peak.add_metric([name], torch.cuda.max_memory_allocated(index))
    yield from (free, total, mine, peak)


def _about_work(app: Any) -> Iterator[Metric]:
    length = GaugeMetricFamily("anomaly_queue_length", "Analyses that wait for a device", labels=["device"])
    busy = GaugeMetricFamily("anomaly_device_busy", "Whether an analysis has the device", labels=["device"])
    oldest = GaugeMetricFamily(
        "anomaly_queue_oldest_seconds", "How long the one that waits longest has waited (s)", labels=["device"]
    )
    for device, (waiting, held, since) in app.runner.lines.state().items():
        name = device.replace(":", "")
        length.add_metric([name], waiting)
        busy.add_metric([name], float(held))
        oldest.add_metric([name], since)
    yield from (length, busy, oldest)
    tasks = background.listing(app)
    jobs = GaugeMetricFamily("anomaly_jobs", "Jobs that wait or run, by kind", labels=["kind", "state"])
    count = Count((job["kind"], job["state"]) for job in (*app.jobs.listing(states=(QUEUED, RUNNING)), *tasks))
    for kind in ("infer", background.TRAIN, background.SCORING, background.BATCH):
        for state in (QUEUED, RUNNING):
            jobs.add_metric([kind, state], count[kind, state])
    yield jobs
    silent = GaugeMetricFamily(
        "anomaly_job_silent_seconds", "How long the running job that told nothing longest has (s)", labels=["kind"]
    )
    longest = {"infer": 0.0}
    for seconds, job in app.jobs.silent():
        kind = bounded("job", job.kind)
        longest[kind] = max(seconds, longest.get(kind, 0.0))
    for kind, seconds in longest.items():
        silent.add_metric([kind], seconds)
    yield silent
    share = GaugeMetricFamily(
        "anomaly_background_progress", "Share done of what runs in the background", labels=["kind"]
    )
    since = GaugeMetricFamily("anomaly_background_seconds", "How long it has been running (s)", labels=["kind"])
    for task in tasks:
        if task["state"] == RUNNING:
            share.add_metric([task["kind"]], float(task.get("progress") or 0.0))
            since.add_metric([task["kind"]], float(task.get("seconds") or 0.0))
    yield from (share, since)


def _about_models(app: Any) -> Iterator[Metric]:
    yield _gauge(
        "anomaly_models", "Models that serve", sum(name == task.entry.name for name, task in app.tasks().items())
    )
    loaded = GaugeMetricFamily("anomaly_model_loaded", "Models in memory", labels=["model", "device"])
    for model, device in sorted({(bounded("model", model), device) for model, device in app.runner.loaded()}):
        loaded.add_metric([model, device.replace(":", "") or "reading"], 1)
    yield loaded


def _about_caches(app: Any) -> Iterator[Metric]:
    size = GaugeMetricFamily("anomaly_cache_bytes", "Bytes in a cache", labels=["cache"])
    entries = GaugeMetricFamily("anomaly_cache_entries", "Entries of a cache", labels=["cache"])
    lookups = CounterMetricFamily("anomaly_cache_lookups", "Questions to a cache", labels=["cache", "found"])
    memory, scans = app.analyses.figures(), app.scans.figures()
    count, total = _disk_analyses.of(app.analyses.store)
    for name, (held, taken) in {
        "analyses": (memory["entries"], memory["bytes"]),
        "disk_analyses": (count, total),
        "scans": (scans["entries"], scans["bytes"]),
    }.items():
        entries.add_metric([name], held)
        size.add_metric([name], taken)
    for name, hits, misses in (
        ("analyses", memory["hits"], memory["misses"]),
        ("disk_analyses", memory["disk_hits"], memory["misses"] - memory["disk_hits"]),
        ("scans", scans["hits"], scans["misses"]),
    ):
        lookups.add_metric([name, "yes"], hits)
        lookups.add_metric([name, "no"], misses)
    yield from (size, entries, lookups)


def _about_datastore(app: Any) -> Iterator[Metric]:
    datastore = app.datastore()
    known = datastore.entries()
    series = getattr(datastore, "known_series", None)
    listed = series() if series is not None else len(known)
    if listed is not None:
        # Of an archive that has not been asked yet nothing is known, which is not 0.
        yield _gauge("anomaly_datastore_images", "Scans in the datastore, as it was last listed", listed)
    labels = GaugeMetricFamily("anomaly_datastore_labels", "Scans with a label of a tag", labels=["tag"])
    count = Count(tag if tag in _TAGS else "other" for _, tags in known.values() for tag in set(tags))
    for tag in sorted(_TAGS | set(count)):
        labels.add_metric([tag], count[tag])
    yield labels


def _about_disks(app: Any) -> Iterator[Metric]:
    free = GaugeMetricFamily("anomaly_disk_free_bytes", "Free bytes where a folder is", labels=["folder"])
    total = GaugeMetricFamily("anomaly_disk_total_bytes", "Bytes of the disk a folder is on", labels=["folder"])
    for name, path in folders(app).items():
        there, all_of_it = free_bytes(path)
        free.add_metric([name], there)
        total.add_metric([name], all_of_it)
    yield from (free, total)


def _about_audit(app: Any) -> Iterator[Metric]:
    path = log_file(Path(app.app_dir), app.conf.get("audit"))
    if path is None:
        return
    lost = CounterMetricFamily("anomaly_audit_unwritten", "Records that could not be written into the audit log")
    lost.add_metric([], audit.journal().failed)
    yield lost
    if path.is_file():
        full, now = rotated(path), path.stat()
        # A new month's file begins empty; the log has not.
        yield _gauge("anomaly_audit_records", "Records of the audit log", _records(path, full))
        size = now.st_size + sum(file.stat().st_size for file in full)
        yield _gauge("anomaly_audit_bytes", "Bytes of the audit log", size)
        yield _gauge("anomaly_audit_written_timestamp_seconds", "When the audit log was last written", now.st_mtime)


def _records(path: Path, full: list[Path]) -> int:
    head = read_head(path)
    if head is not None:
        return head[0].sequence
    return _audit_lines.of([*full, path])


_OF_APP = (
    _about_work, _about_models, _about_caches, _about_datastore, _about_disks, _about_audit,
)  # fmt: skip
