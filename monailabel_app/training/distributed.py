"""Several processes on one training: one per GPU, on one machine or more, started by torchrun.

Every process holds the whole network and computes its lanes of the batch; the gradients are summed, so that all take
the same step. The sum is one call after every process has said that its lanes went well, and not part of the backward
pass as in DistributedDataParallel: a process that runs out of memory in its backward pass would leave the others
waiting in theirs. It also leaves the network as it is, so that a method may call any part of it.

Several machines: start ``torchrun --nnodes N --nproc_per_node GPUS --rdzv-backend c10d --rdzv-endpoint HOST:PORT
main.py train ...`` on each, with the run folder on a disk that all of them see.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from monailabel_app.errors import InvalidSettings, TrainingFailed

_LOG = logging.getLogger(__name__)
MAIN = Path(__file__).resolve().parents[2] / "main.py"
TIMEOUT_MINUTES = 15.0


def world_size() -> int:
    """Processes of this training, from torchrun's environment; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process; 0 is the one that writes files and talks to the user."""
    return int(os.environ["RANK"]) if "RANK" in os.environ else 0


def is_distributed() -> bool:
    """Whether torchrun started this process beside others."""
    return world_size() > 1


class Group:
    """The processes of a training as the loop uses them; with one process every call returns its argument.

    Every rank has to make the same calls in the same order. They raise TrainingFailed when a process is gone.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def is_first(self) -> bool:
        """Whether this process validates, saves and reports."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes; NaN of one is NaN for all."""
        if self.world == 1:
            return [float(value) for value in values]
        numbers = torch.tensor(values, dtype=torch.float64)
        self._sum(numbers)
        return numbers.tolist()

    def from_first(self, value: float) -> float:
        """The number of rank 0."""
        return self.total([value if self.is_first else 0.0])[0] if self.world > 1 else value

    def merge(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows that are zero but for those of their owner, completed (CPU)."""
        if self.world > 1:
            self._sum(rows)
        return rows

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                with _lost_process():
                    distributed.broadcast(tensor.detach(), 0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their sum over all processes; one without is zero where another has one."""
        if self.world == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        have = torch.tensor([float(parameter.grad is not None) for parameter in trained])
        self._sum(have)
        trained = [parameter for parameter, count in zip(trained, have.tolist(), strict=True) if count]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in trained])
        self._sum(flat)
        for parameter, part in zip(trained, flat.split([parameter.numel() for parameter in trained]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def check(self, error: Exception | None) -> None:
        """Raise ``error`` here and TrainingFailed everywhere else, if any process has one."""
        failed = self.total([float(error is not None)])[0]
        if error is not None:
            raise error
        if failed:
            raise TrainingFailed(
                "expected all processes to go on, but another one of this training stopped; its message says why"
            )

    def _sum(self, tensor: torch.Tensor) -> None:
        with _lost_process():
            distributed.all_reduce(tensor)


@contextmanager
def _lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingFailed(
            f"expected an answer of every process of this training, got {str(error).splitlines()[0]}; a process or "
            "machine is gone, the last checkpoint is kept, start again with --resume"
        ) from error


@contextmanager
def process_group(device: str, *, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[tuple[Group, torch.device]]:
    """The group of this training and the device of this process; joined at entry when torchrun started it.

    device: ``cuda`` becomes the GPU of this process. gloo carries what lies on the CPU, nccl what lies on a GPU. A
    group that the caller has made (torch.distributed.init_process_group) is used and left open. A process that does
    not answer for ``timeout_minutes``, rank 0 validating and saving included, ends the run of all.
    Raises TrainingFailed when there are fewer GPUs than processes or the others cannot be reached.
    """
    if not is_distributed():
        yield Group(), torch.device(device)
        return
    place, backend = torch.device(device), "gloo"
    if place.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainingFailed(
                f"expected a GPU for each process of this machine, got {torch.cuda.device_count()} for at least "
                f"{local + 1} processes; start one process per GPU"
            )
        place, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(place)
    if distributed.is_initialized():
        yield Group(distributed.get_rank(), distributed.get_world_size()), place
        return
    _leave_with_launcher()
    with _lost_process():
        distributed.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    _LOG.info("process %d of %d on %s", rank(), world_size(), place.type)
    yield Group(distributed.get_rank(), distributed.get_world_size()), place
    # Not after an error: the other processes may never come to it.
    distributed.destroy_process_group()


def launch(arguments: Sequence[str], processes: int, *, program: Path = MAIN) -> None:
    """Run ``python PROGRAM ARGUMENTS`` as ``processes`` processes of this machine and wait for them.

    When one dies, torchrun ends the others; when the caller is killed with its process tree, so are they.
    Raises InvalidSettings for fewer than 1 process, TrainingFailed when a process failed (its message is on standard
    error).
    """
    if processes < 1:
        raise InvalidSettings(f"expected at least 1 process, got {processes}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if sys.platform == "linux":
        # All processes are on this machine: do not depend on its host name being known to a name server.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    path = [str(program.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    code = subprocess.run([*command, str(program), *arguments], env=environment, check=False).returncode
    if code:
        raise TrainingFailed(
            f"expected {processes} processes to finish the training, got exit code {code}; their messages are above, "
            "the last checkpoint is kept, go on with --resume"
        )


def _leave_with_launcher(every: float = 2.0) -> None:
    """End this process when its launcher is killed: nobody would notice a training that nobody waits for."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
