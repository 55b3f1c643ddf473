"""Loaded models, and who may use a device when.

One line per device (``lib.line``): a device is had for a whole analysis, so it runs one job at a time and the others
wait in the order in which they came. One lock for the table of loaded models, held only to look at the table; it is
always taken after a device, never before one, and no device is waited for while it is held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from lib.line import MAX_WAITING, Lines
from monailabel_app.errors import CorruptModel, InvalidSettings
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.memory import trim
from monailabel_app.weights.model_folder import model_id

logger = logging.getLogger(__name__)

MAX_LOADED = 2
# How often memory that analyses no longer use is given back to the system; it takes a tenth of a second.
TRIM_SECONDS = 20.0
_Stamp = tuple[tuple[str, int, int], ...]


class ModelRunner:
    """Keeps the most recently used models in memory and lets one job at a time on a device."""

    def __init__(
        self,
        max_loaded: int = MAX_LOADED,
        max_waiting: int = MAX_WAITING,
        load: Callable[[Path], object] | None = None,
    ):
        self._load = load or (lambda folder: pipeline.load_model(folder))
        self._max_loaded = max(1, max_loaded)
        self.lines = Lines(max_waiting)
        self._models: OrderedDict[tuple[Path, str], tuple[_Stamp, object]] = OrderedDict()
        self._readers: OrderedDict[tuple[Path, str], tuple[_Stamp, object]] = OrderedDict()
        self._damaged: dict[Path, tuple[_Stamp, str]] = {}
        self._table = threading.Lock()
        self._loading_reader = threading.Lock()
        self._trimmed = time.monotonic()

    @property
    def waiting(self) -> int:
        """How many requests stand in line, the running ones not counted."""
        return self.lines.waiting

    @contextmanager
    def device(self, name: str, ask: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold ``name`` for one analysis. Raises ServerBusy when too many wait already, Cancelled while waiting.

        ask: called now and then while waiting; what it raises ends the waiting.
        """
        with self.lines.device(name, ask):
            yield
        # Here, and not with the device in hand, which others wait for.
        if time.monotonic() - self._trimmed > TRIM_SECONDS:
            self._trimmed = time.monotonic()
            trim()

    def model(self, folder: Path, device: str) -> object:
        """The model in ``folder`` for ``device``, loaded anew when a file in it has changed.

        Call it holding the device. Each device has a copy of its own, because a network is moved between devices
        in place.
        """
        key, stamp = (folder, device), _stamp(folder)
        with self._table:
            held = self._models.get(key)
            if held is not None and held[0] == stamp:
                self._models.move_to_end(key)
                return held[1]
            read = self._readers.pop((folder, ""), None)
        # One that was loaded to look at analyses serves from now on: looking does not mind.
        model = read[1] if read is not None and read[0] == stamp else self._loaded(folder, stamp)
        with self._table:
            self._models[key] = (stamp, model)
            self._models.move_to_end(key)
            while len(self._models) > self._max_loaded:
                self._models.popitem(last=False)
        return model

    def reading(self, folder: Path) -> object:
        """The model in ``folder`` to look at an analysis that is at hand, while a device may be busy with another.

        Its network is not to be used. One that is loaded for some device serves, else a copy is loaded and kept.
        """
        stamp = _stamp(folder)
        with self._table:
            for table in (self._models, self._readers):
                for (path, _), (held, model) in table.items():
                    if path == folder and held == stamp:
                        return model
        with self._loading_reader:
            with self._table:
                held = self._readers.get((folder, ""))
                if held is not None and held[0] == stamp:
                    return held[1]
            model = self._loaded(folder, stamp)
            with self._table:
                self._readers[(folder, "")] = (stamp, model)
                self._readers.move_to_end((folder, ""))
                while len(self._readers) > self._max_loaded:
                    self._readers.popitem(last=False)
        return model

    def loaded(self) -> list[tuple[str, str]]:
        """Model and device of what is in memory; no device for one that only looks at analyses."""
        with self._table:
            keys = [*self._models, *self._readers]
        return [(model_id(folder), device) for folder, device in keys]

    def fault(self, folder: Path) -> str:
        """Why the model in ``folder`` could not be loaded, while its files are the ones that were tried; else empty."""
        with self._table:
            held = self._damaged.get(folder)
        with suppress(OSError):
            return held[1] if held is not None and held[0] == _stamp(folder) else ""
        return ""

    def _loaded(self, folder: Path, stamp: _Stamp) -> object:
        try:
            model = self._load(folder)
        except CorruptModel as error:
            with self._table:
                self._damaged[folder] = (stamp, str(error))
            raise
        with self._table:
            self._damaged.pop(folder, None)
        return model

    def make_room(self, models: int) -> None:
        """Keep at least so many models in memory, such as one for each device that is going to work."""
        self._max_loaded = max(self._max_loaded, models)

    def forget(self) -> None:
        """Drop all loaded models, to give their memory back."""
        with self._table:
            self._models.clear()
            self._readers.clear()


def choose_device(wanted: object = None) -> str:
    """The torch device for a request: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or
    ``cuda:N``.

    Raises InvalidSettings naming the devices of this machine.
    """
    if isinstance(wanted, (list, tuple)):
        wanted = wanted[0] if wanted else None
    name = str(wanted or "auto").strip().lower()
    devices = list_devices()
    if name in {"auto", "cuda"}:
        # MONAI Label's own batch request says cuda on every machine.
        return devices[0]
    if name not in devices:
        raise InvalidSettings(f"expected device to be one of auto, {', '.join(devices)}; got {str(wanted)[:40]!r}")
    return name


def list_devices() -> list[str]:
    """The torch devices of this machine, best first; counting GPUs does not start CUDA on them."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] + ["cpu"]


def _stamp(folder: Path) -> _Stamp:
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
