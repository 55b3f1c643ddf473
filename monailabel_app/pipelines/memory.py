"""How much memory a piece of work needed at its peak."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def trim() -> None:
    """Give what the allocator keeps for later back to the system, where it can be told to (glibc).

    Each thread has a heap of its own there, and holes in each stay: a server whose analyses run in many threads would
    go on growing for a while.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


_MALLOC_TRIM = _malloc_trim()


def reset_peak_memory(device: str = "cpu") -> None:
    """Begin a new peak, where the system lets a process do that (Linux, CUDA); elsewhere the peak is the process's."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_mb(device: str = "cpu") -> float:
    """The largest memory since the last reset: of the device's allocator, else the whole process's resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
