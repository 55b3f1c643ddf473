"""Work spread over processes that may die: one item's death is that item's result, and the others go on.

Processes are spawned, not forked (a fork of a program with threads, ITK's or a GPU's, can hang). Each computes on one
thread. They end with the process that started them, even when that one is killed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from .spawning import end_with_parent, without_main_module

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(Exception):
    """The process that had this item ended without an answer (killed for its memory, or crashed)."""


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Result | WorkerDied]]:
    """``(index, function(item))`` as they are finished, in any order; WorkerDied in place of a lost result.

    No more than ``workers`` items are under way, so memory is bounded by them. When a process dies, the items then
    under way are tried again one by one: each has the machine to itself, and the one at fault is found. Exceptions of
    ``function`` are raised here. ``function`` and ``items`` must be picklable; with no workers this process does it.
    """
    if workers < 1:
        yield from ((index, function(item)) for index, item in enumerate(items))
        return
    waiting = list(range(len(items)))[::-1]
    while waiting:
        suspects = yield from _until_one_dies(function, items, waiting, workers)
        for index in suspects:
            alone = [index]
            died = yield from _until_one_dies(function, items, alone, 1)
            if died:
                yield index, WorkerDied()


def _until_one_dies(function, items, waiting: list[int], workers: int) -> Iterator[tuple[int, Any]]:
    """Work off ``waiting`` from its end; returns what was under way when a process died, nothing if none did."""
    running: dict[Future, int] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_begin)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                with without_main_module():
                    try:
                        future = pool.submit(function, items[waiting[-1]])
                    except BrokenProcessPool:
                        break
                running[future] = waiting.pop()
            if not running:  # an idle process died: nothing is lost but the pool
                return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            lost = []
            for future in done:
                index = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(index)
                else:
                    yield index, future.result()
            if lost:
                # The others under way are lost too, though the pool may not have told them yet.
                return sorted([*lost, *running.values()])
        return []
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    end_with_parent()
