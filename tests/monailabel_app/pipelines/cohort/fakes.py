"""Work for workers that costs nothing, and some that costs the worker."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Errand:
    """key says what is to be done. folder: where ``once`` and ``hang`` leave their traces."""

    key: str
    folder: str = ""
    tries: int = 0


class Obedient:
    """As an Analyst, for errands."""

    def __init__(self, device):
        self.device = device

    def __call__(self, errand):
        word, _, rest = errand.key.partition(" ")
        if word == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "leave":
            os._exit(3)
        if word == "hang":
            if errand.folder:
                Path(errand.folder, "hangs").touch()
            time.sleep(600)
        if word == "nap":
            time.sleep(float(rest))
        if word == "meet":
            meet(Path(errand.folder), int(rest.split()[0]))
        if word == "until":
            until(Path(errand.folder), rest.split()[0])
        if word == "memory":
            raise MemoryError("no more of it")
        if word == "once":
            trace = Path(errand.folder, "crashed")
            if not trace.exists():
                trace.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {
            "scan": errand.key,
            "state": "analysed",
            "pid": os.getpid(),
            "device": self.device,
            "node": os.environ.get("NODE", ""),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }


def meet(folder, count, seconds=300):
    """Wait until as many workers as that are here."""
    (folder / f"here-{os.getpid()}").touch()
    end = time.monotonic() + seconds
    while len(list(folder.glob("here-*"))) < count:
        if time.monotonic() > end:
            raise MemoryError("the others did not come")
        time.sleep(0.02)


def until(folder, name, seconds=300):
    """Say that this worker is here, and wait until somebody makes the file ``name``."""
    (folder / f"here-{os.getpid()}").touch()
    end = time.monotonic() + seconds
    while not (folder / name).exists():
        if time.monotonic() > end:
            raise MemoryError(f"{name} did not come")
        time.sleep(0.02)


class Unable:
    """A worker that cannot even begin."""

    def __init__(self, device):
        raise RuntimeError("no library here")
