"""What models made of prepared scans, on disk: a killed evaluation goes on where it was, and memory holds one scan.

One file per scan and model, named by the hash of what decides the model's results and by the key of the case. It holds
the raw maps inside the brain, float32; an ensemble has none of its own, its members' are enough. The files are patient
data without a name or an id.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.files import replacing
from monailabel_app.types import PreparedVolume

from ..analysis import Analysis, Evidence

FOLDER = "analyses"
_VERSION = 1


@dataclass(frozen=True)
class Costs:
    """What an analysis took: seconds on the clock, seconds of processor, peak memory of the process or device in MB."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.seconds + other.seconds,
            self.processor_seconds + other.processor_seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
        )


class AnalysisStore:
    """The folder ``cache``/analyses; made when first written to."""

    def __init__(self, cache: Path) -> None:
        self.folder = Path(cache) / FOLDER

    def path(self, model_hash: str, key: str) -> Path:
        """Where the analysis of a case by a model is or would be."""
        return self.folder / model_hash[:16] / key[:2] / f"{key[:40]}.safetensors"

    def holds(self, model_hash: str, key: str, scores: Collection[str]) -> bool:
        """Whether the raw maps of these scores are there."""
        return self.path(model_hash, key).is_file() and set(scores) <= set(self.scores(model_hash, key))

    def scores(self, model_hash: str, key: str) -> tuple[str, ...]:
        """Whose raw maps are there."""
        about = self._about(model_hash, key)
        return tuple(about["scores"]) if about is not None else ()

    def costs(self, model_hash: str, key: str) -> Costs | None:
        """What the analysis took; None where there is none."""
        about = self._about(model_hash, key)
        return Costs(**about["costs"]) if about is not None else None

    def write(self, model_hash: str, key: str, scan: Analysis, scores: Collection[str], costs: Costs) -> None:
        """Keep the raw maps of some scores. Raises OSError when the folder cannot be written."""
        path = self.path(model_hash, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        inside = scan.prepared.brain_mask
        tensors = {f"raw/{score}": torch.from_numpy(scan.raw(score)[inside].astype(np.float32)) for score in scores}
        tensors["shape"] = torch.tensor(inside.shape, dtype=torch.int32)
        about = {"version": _VERSION, "scores": list(scores), "costs": vars(costs)}
        try:
            with replacing(path) as partial:
                save_file(tensors, str(partial), {"about": json.dumps(about)})
        except SafetensorError as error:  # its own error for a full disk
            raise OSError(str(error)) from error

    def read(self, model_hash: str, key: str, prepared: PreparedVolume) -> Analysis | None:
        """The analysis of a prepared scan with the raw maps that were kept; None where there is none of that brain."""
        inside = prepared.brain_mask
        try:
            with safe_open(str(self.path(model_hash, key)), framework="pt") as handle:
                if tuple(handle.get_tensor("shape").tolist()) != inside.shape:
                    return None
                maps = {}
                for name in handle.keys():  # noqa: SIM118 - a handle is no dictionary
                    if name.startswith("raw/"):
                        maps[name.removeprefix("raw/")] = _dense(handle.get_tensor(name).numpy(), inside)
        except (OSError, SafetensorError, ValueError):
            return None
        return Analysis(prepared, Evidence(prepared.image[0], inside, None, maps))

    def _about(self, model_hash: str, key: str) -> Mapping[str, Any] | None:
        try:
            with safe_open(str(self.path(model_hash, key)), framework="pt") as handle:
                about = json.loads((handle.metadata() or {}).get("about", "{}"))
        except (OSError, SafetensorError, ValueError):
            return None
        return about if about.get("version") == _VERSION else None


def keep_in(folder: Path) -> Callable[[str, Callable[[], np.ndarray]], np.ndarray]:
    """Keeps arrays that several processes need, such as maps of healthy scans, in a folder for the time of a set."""

    def keep(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = folder / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            values = make()
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, ending=".npy") as partial:
            np.save(partial, values, allow_pickle=False)
        return values

    return keep


def purge(cache: Path) -> int:
    """Delete prepared scans, analyses and all that is kept beside them; returns how many bytes that freed."""
    freed = 0
    for name in ("prepared", FOLDER, "healthy"):
        folder = Path(cache) / name
        if folder.is_dir() and not folder.is_symlink():
            freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder)
    return freed


def _dense(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    dense = np.zeros(inside.shape, dtype=np.float32)
    dense[inside] = values
    return dense
