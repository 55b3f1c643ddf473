"""A batch in lanes: pieces with random numbers of their own, computed one after the other or by several processes.

Because a lane's random numbers do not depend on who computes it, two processes with one lane each do what one process
with two lanes does. Less memory is needed by computing the same batch in more lanes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lane:
    """One piece of the batch: its number, how many slices it has and where its random numbers come from."""

    number: int
    size: int
    generator: torch.Generator


class Lanes:
    """The lanes rank, rank + world, ... of a batch; ``count`` is a multiple of ``world`` (rounded up)."""

    def __init__(self, count: int, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        self.count = math.lcm(count, world)
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._generators: dict[int, torch.Generator] = {}
        self._open()

    def __iter__(self) -> Iterator[Lane]:
        """The lanes of this rank that have slices; sizes differ by one at most."""
        for number, generator in self._generators.items():
            size = self._batch_size // self.count + (number < self._batch_size % self.count)
            if size:
                yield Lane(number, size, generator)

    @property
    def largest(self) -> int:
        """Slices in the largest lane."""
        return -(-self._batch_size // self.count)

    def double(self) -> None:
        """Halve the pieces. The lanes there are keep their random numbers, new ones begin their own."""
        self.count *= 2
        self._open()

    def states(self) -> torch.Tensor:
        """(count, bytes) uint8: the generators' states; rows of other ranks are zero."""
        own = {number: generator.get_state() for number, generator in self._generators.items()}
        size = next(iter(own.values())).numel()
        out = torch.zeros(self.count, size, dtype=torch.uint8)
        for number, state in own.items():
            out[number] = state
        return out

    def restore(self, states: torch.Tensor) -> None:
        """Go back to ``states``; more or fewer lanes than now are taken over as well.

        Where the number of lanes does not suit the number of processes, lanes are added.
        """
        states = torch.atleast_2d(states)
        self.count = math.lcm(len(states), self._world)
        self._generators = {}
        self._open()
        for number in self._generators:
            if number < len(states):
                self._generators[number].set_state(states[number].clone())

    def _open(self) -> None:
        for number in range(self._rank, self.count, self._world):
            if number not in self._generators:
                self._generators[number] = torch.Generator().manual_seed(stream_seed(self._seed, number))


def stream_seed(seed: int, lane: int, *more: int) -> int:
    """A seed for each lane (and step): the first lane's is ``seed`` itself."""
    if lane == 0 and not more:
        return seed
    digest = hashlib.sha256("/".join(str(n) for n in (seed, lane, *more)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on CUDA, MPS, XPU or the CPU."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)


def free_memory(device: torch.device) -> None:
    """Give cached blocks back, so that smaller pieces find room in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
