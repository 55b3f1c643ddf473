"""What becomes of an analysis whose device has no memory left: smaller pieces, then the CPU, and a word about it.

Methods take slices in batches. Which noise a slice gets does not depend on how many are taken at a time, so that fewer
give the same result but for the rounding of the device's kernels, which choose their algorithms by size; the CPU
computes in single precision where a GPU may take bfloat16. What worked is remembered for a while, so that the next scan
does not fail first; then more is tried again, since it may have been another program that held the memory.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from monailabel_app.monitoring.instruments import count_fallback
from monailabel_app.training.lanes import free_memory, is_out_of_memory

from .memory import trim

logger = logging.getLogger(__name__)

T = TypeVar("T")
SLICES_AT_ONCE = 16
_REMEMBERED_SECONDS = 900.0
_CPU = "cpu"


@dataclass(frozen=True)
class Way:
    """Where and in which pieces a piece of work is done."""

    device: str
    slices: int = SLICES_AT_ONCE


class Room:
    """Which way worked last, by what is done and the device that was asked for; safe to share between threads."""

    def __init__(self, seconds: float = _REMEMBERED_SECONDS):
        self._seconds = seconds
        self._worked: dict[tuple[str, str], tuple[float, Way]] = {}
        self._lock = threading.Lock()

    def run(self, what: str, device: str, work: Callable[[Way], T], *, in_pieces: bool = True) -> tuple[T, Way]:
        """``work`` in the first way that memory allows, and that way.

        what: tells works of another size apart, such as a model's hash. device: the one that was asked for; for the CPU
        there is no other way. in_pieces: whether the work is smaller with fewer slices. Raises MemoryError where the
        last way failed, too, and what else ``work`` raises.
        """
        ways = self._ways(what, device, in_pieces)
        for number, way in enumerate(ways):
            failure = None
            try:
                made = work(way)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # Not the error itself: its frames hold the arrays that are to be given back.
                failure = type(error).__name__
            if failure is None:
                if number:
                    self._note(what, device, way)
                return made, way
            give_back(way.device)
            if number + 1 < len(ways):
                after = ways[number + 1]
                logger.warning(
                    "%s ran out of memory (%s): trying %s, %d slices at a time",
                    way.device, failure, after.device, after.slices,
                )  # fmt: skip
        raise MemoryError(f"{ways[-1].device} ran out of memory")

    def _ways(self, what: str, device: str, in_pieces: bool) -> list[Way]:
        if torch.device(device).type == _CPU:
            return [Way(device)]
        sizes = [SLICES_AT_ONCE]
        while in_pieces and sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        if not in_pieces:
            # Once more with what the first attempt left behind given back.
            sizes.append(SLICES_AT_ONCE)
        ways = [*(Way(device, size) for size in sizes), Way(_CPU)]
        with self._lock:
            until, worked = self._worked.get((what, device), (0.0, ways[0]))
            if time.monotonic() > until:
                return ways
        return ways[ways.index(worked) :] if worked in ways else ways

    def _note(self, what: str, device: str, way: Way) -> None:
        with self._lock:
            self._worked[what, device] = time.monotonic() + self._seconds, way
        if way != Way(device):
            count_fallback("cpu" if way.device == _CPU else "smaller_batches")


ROOM = Room()


def about(way: Way, device: str) -> dict[str, Any]:
    """What a manifest says of work that was not done on ``device`` in the usual pieces; nothing of what was."""
    return {
        **({"instead_of": device} if way.device != device else {}),
        **({"slices_at_once": way.slices} if way.slices != SLICES_AT_ONCE else {}),
    }


def notes(made: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence about each lesser way among the environments that analyses were made in."""
    found = {}
    for environment in made:
        if "instead_of" in environment:
            found[in_words(Way(_CPU), str(environment["instead_of"]), "the reconstruction")] = None
        elif "slices_at_once" in environment:
            way = Way(str(environment["device"]), int(environment["slices_at_once"]))
            found[in_words(way, way.device, "the reconstruction")] = None
    return list(found)


def in_words(way: Way, device: str, what: str) -> str:
    """One sentence about work that was not done in the usual way; empty for what was."""
    if way.device != device:
        return f"{device} had too little memory: {what} was computed on the CPU, which differs by rounding"
    if way.slices < SLICES_AT_ONCE:
        pieces = f"{way.slices} slices at a time" if way.slices > 1 else "slice by slice"
        return f"{device} had too little memory: {what} was computed {pieces}, which differs by rounding at most"
    return ""


def give_back(device: str) -> None:
    """Give memory back that nothing uses any more: to the device, and to the system."""
    gc.collect()
    trim()
    free_memory(torch.device(device))
