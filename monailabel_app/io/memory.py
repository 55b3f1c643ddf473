"""Whether there is memory for a scan, asked before any of it is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

from monailabel_app.errors import NotEnoughMemory

# Measured: reading a scan and analysing it takes 31 bytes per voxel of its own grid at most (during alignment, of
# 256x256x200 voxels) beside what the models take; 8 of them while reading.
BYTES_PER_VOXEL = 32
# Left to the system and to the models.
RESERVE = 512 * 2**20
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory that can be taken without swapping, also where a container has less than its machine."""
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        # What is only cached files goes when it is needed.
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return free if limit == "max" else min(free, int(limit) - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):
        return free


def check_memory(voxels: int) -> None:
    """Raises NotEnoughMemory when a scan of so many voxels could not be analysed now."""
    needed, free = voxels * BYTES_PER_VOXEL, available_bytes() - RESERVE
    if needed > free:
        raise NotEnoughMemory(
            f"expected {needed / 2**30:.1f} GiB of free memory for a scan of {voxels / 1e6:.0f} million voxels, got "
            f"{max(0, free) / 2**30:.1f}: try again later, or send the scan at a lower resolution"
        )
