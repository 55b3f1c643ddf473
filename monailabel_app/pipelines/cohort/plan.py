"""How many workers a machine has room for, and where each works."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

from monailabel_app.errors import InvalidSettings

from .processes import Lane

CORES_PER_WORKER = 2
# Of a worker with the libraries, two models and a scan of 256^3 voxels at work, with some to spare.
GIB_PER_WORKER = 4.0
_MOST_WORKERS = 256


def lanes(workers: int | None = None, devices: str = "auto") -> list[Lane]:
    """One worker per GPU, or on the CPU one per two cores and per 4 GiB of memory that is free, each with its share of
    the cores as threads.

    devices: ``auto`` (all GPUs, else the CPU), ``cpu``, ``cuda`` (all) or names such as ``cuda:0,cuda:1``. workers: in
    all; more than devices share these in turn. Raises InvalidSettings.
    """
    chosen = _devices(devices)
    if workers is not None and not 1 <= workers <= _MOST_WORKERS:
        raise InvalidSettings(f"expected --workers from 1 to {_MOST_WORKERS}, got {workers}")
    cores = available_cores()
    if workers is None and chosen == ["cpu"]:
        workers = max(1, min(cores // CORES_PER_WORKER, int(available_gib() // GIB_PER_WORKER)))
    count = workers or len(chosen)
    threads = max(1, cores // count)
    return [Lane(chosen[index % len(chosen)], threads) for index in range(count)]


def available_cores() -> int:
    """Of this process, not of the machine: a batch system or container may give only some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _number(Path("/sys/fs/cgroup/cpu.max"))
    period = _number(Path("/sys/fs/cgroup/cpu.max"), 1)
    return max(1, min(cores, round(quota / period))) if quota and period else cores


def available_gib() -> float:
    """Memory that is free now, within the container's limit."""
    free = psutil.virtual_memory().available
    limit, used = _number(Path("/sys/fs/cgroup/memory.max")), _number(Path("/sys/fs/cgroup/memory.current"))
    return min(free, max(0, limit - used) if limit and used is not None else free) / 2**30


def _number(path: Path, index: int = 0) -> int | None:
    try:
        return int(path.read_text().split()[index])
    except (OSError, ValueError, IndexError):
        return None


def _devices(text: str) -> list[str]:
    there_are = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        return there_are or ["cpu"]
    if names == ["cuda"]:
        names = there_are or names
    for name in names or [""]:
        if name not in (*there_are, "cpu"):
            raise InvalidSettings(f"expected devices out of auto, {', '.join([*there_are, 'cpu'])}; got {name!r}")
    return names
