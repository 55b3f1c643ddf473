"""Training checkpoints without pickle: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed

LAST = "last.safetensors"


@dataclass
class TrainingState:
    """All that a run needs to go on as if it had never stopped."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    generator: torch.Tensor
    step: int
    seconds: float
    history: list[dict[str, float]]
    settings: dict[str, Any]


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write ``last.safetensors`` by rename, so that a kill or a full disk leaves the previous one.

    Raises TrainingFailed when it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {"generator": state.generator}
    tensors |= {f"model/{name}": value for name, value in state.model.items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema.items()}
    for index, slots in state.optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    header = {
        "step": state.step,
        "seconds": state.seconds,
        "history": state.history,
        "settings": state.settings,
        "param_groups": state.optimizer["param_groups"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / LAST, folder / (LAST + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, str(partial), {"state": json.dumps(header)})
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingFailed(
            f"expected to write the checkpoint of step {state.step}, got {error}; the previous checkpoint is kept, "
            "make space or choose another run folder and resume"
        ) from error
    return target


def load_state(folder: Path) -> TrainingState:
    """Read the last checkpoint of a run. Raises TrainingFailed when there is none or it is damaged."""
    path = folder / LAST
    if not path.is_file():
        raise TrainingFailed(f"expected a checkpoint {LAST} in the run folder, found none; start without --resume")
    try:
        return _read(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingFailed(
            f"expected a readable checkpoint {LAST}, got {type(error).__name__}; it is damaged, start a new run folder"
        ) from error


def _read(path: Path) -> TrainingState:
    model: dict[str, torch.Tensor] = {}
    ema: dict[str, torch.Tensor] = {}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(str(path), framework="pt") as handle:
        header = json.loads((handle.metadata() or {})["state"])
        generator = handle.get_tensor("generator")
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part, _, rest = name.partition("/")
            if part == "model":
                model[rest] = handle.get_tensor(name)
            elif part == "ema":
                ema[rest] = handle.get_tensor(name)
            elif part == "optimizer":
                index, _, slot = rest.partition("/")
                slots.setdefault(int(index), {})[slot] = handle.get_tensor(name)
    optimizer = {"state": slots, "param_groups": header["param_groups"]}
    return TrainingState(
        model, ema, optimizer, generator, header["step"], header["seconds"], header["history"], header["settings"]
    )
