"""Training checkpoints without pickle: tensors in safetensors, everything else as JSON in its header.

Two are kept, ``last.safetensors`` and the one before it, ``previous.safetensors``. A checkpoint is written beside them,
brought to the disk (file and folder) and renamed, so that at every moment, a power cut included, at least one is whole.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import flush

LAST = "last.safetensors"
PREVIOUS = "previous.safetensors"

_LOG = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that a run needs to go on as if it had never stopped.

    model, ema: state dicts of the network and of its averaged weights (what is kept). generator: (lanes, bytes) or
    (bytes,) uint8, states of the random number streams. history: one entry per validation: step, epoch, loss, where
    measured validation_loss and figures, all finite, and a text ``note`` where something happened. settings: method,
    config and settings of the run. recent: losses since the last entry. averaged: updates of the average so far (None:
    one per step). notes: everything that happened on the way.
    """

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    generator: torch.Tensor
    step: int
    seconds: float
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    recent: list[float] = field(default_factory=list)
    averaged: int | None = None
    notes: list[str] = field(default_factory=list)


def save_state(folder: Path, state: TrainingState, *, keep_previous: bool = True) -> Path:
    """Write ``last.safetensors``; what was there becomes ``previous.safetensors``, or is dropped.

    Raises TrainingFailed when it cannot be written (full disk, no permission); both earlier ones stay then.
    """
    tensors: dict[str, torch.Tensor] = {"generator": state.generator}
    tensors |= {f"model/{name}": value for name, value in state.model.items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema.items()}
    for index, slots in state.optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {
        "step": state.step,
        "seconds": state.seconds,
        "history": state.history,
        "settings": state.settings,
        "param_groups": state.optimizer["param_groups"],
        "recent": state.recent,
        "averaged": state.averaged,
        "notes": state.notes,
        "checksum": _checksum(contiguous),
    }
    target, partial = folder / LAST, folder / (LAST + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, str(partial), {"state": json.dumps(header)})
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        if keep_previous:
            _keep(target)
        else:
            (folder / PREVIOUS).unlink(missing_ok=True)
        partial.replace(target)
        flush(folder)
    except (OSError, SafetensorError) as error:
        _remove(partial)
        raise TrainingFailed(
            f"expected to write the checkpoint of step {state.step}, got {error}; the previous checkpoint is kept, "
            "make space or choose another run folder and resume"
        ) from error
    return target


def load_state(folder: Path) -> TrainingState:
    """Read the last checkpoint of a run, or with a warning the one before it when the last is damaged.

    Raises TrainingFailed when there is none or both are damaged.
    """
    if not has_state(folder):
        raise TrainingFailed(f"expected a checkpoint {LAST} in the run folder, found none; start without --resume")
    damage = []
    for name in (LAST, PREVIOUS):
        try:
            state = _read(folder / name)
        except FileNotFoundError:
            continue
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            damage.append(f"{name} ({type(error).__name__})")
            _LOG.warning("the checkpoint %s is damaged (%s)", name, type(error).__name__)
            continue
        if name == PREVIOUS:
            _LOG.warning("going on from %s, the checkpoint before the last, of step %d", PREVIOUS, state.step)
        return state
    raise TrainingFailed(
        f"expected a readable checkpoint, got a damaged {' and '.join(damage)}; start a new run folder"
    )


def has_state(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return (folder / LAST).is_file() or (folder / PREVIOUS).is_file()


def _read(path: Path) -> TrainingState:
    model: dict[str, torch.Tensor] = {}
    ema: dict[str, torch.Tensor] = {}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(str(path), framework="pt") as handle:
        header = json.loads((handle.metadata() or {})["state"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    if header.get("checksum") not in (None, _checksum(tensors)):
        raise ValueError("the checksum does not match")
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part == "model":
            model[rest] = tensor
        elif part == "ema":
            ema[rest] = tensor
        elif part == "optimizer":
            index, _, slot = rest.partition("/")
            slots.setdefault(int(index), {})[slot] = tensor
    return TrainingState(
        model,
        ema,
        {"state": slots, "param_groups": header["param_groups"]},
        tensors["generator"],
        header["step"],
        header["seconds"],
        header["history"],
        header["settings"],
        header.get("recent", []),
        header.get("averaged"),
        header.get("notes", []),
    )


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of all tensors in the order of their names; a power cut can leave blocks of zeros in a file."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), value)
    return value


def _keep(last: Path) -> None:
    """Make ``last`` the previous one too, without a moment in which there is none."""
    if not last.is_file():
        return
    previous = last.with_name(PREVIOUS)
    link = previous.with_suffix(".link")
    link.unlink(missing_ok=True)
    try:
        os.link(last, link)
    except OSError:
        # A disk without hard links: for a moment there is only the previous one, which loads as well.
        last.replace(previous)
    else:
        link.replace(previous)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("a partial checkpoint could not be removed: %s", error.strerror)
