"""What is measured of the averaged weights at every checkpoint, and the history that it is kept in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .lanes import free_memory, is_out_of_memory
from .settings import TrainSettings
from .slices import SlicePool, VolumePool

_LOG = logging.getLogger(__name__)
_BATCHES = 8
_MAX_HISTORY = 2000
_OWN_KEYS = {"step", "epoch", "loss", "validation_loss", "note"}

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Validator:
    """Validation loss on held-out slices and the caller's figures; the latest are kept.

    loss: None before the first measurement, without held-out slices, and when it was not finite.
    """

    def __init__(
        self,
        method: ModuleType,
        config: Any,
        settings: TrainSettings,
        device: torch.device,
        held_out: SlicePool | VolumePool | None,
        evaluate: Evaluate | None,
    ) -> None:
        self._method, self._config, self._settings, self._device = method, config, settings, device
        self._held_out, self._evaluate = held_out, evaluate
        self.loss: float | None = None
        self.figures: dict[str, float] = {}

    def take_over(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Begin with what a resumed run measured last."""
        if history:
            self.loss = history[-1].get("validation_loss")
            self.figures = {name: value for name, value in history[-1].items() if name not in _OWN_KEYS}

    def measure(self, network: nn.Module, piece: int) -> str | None:
        """Measure ``network`` in batches of ``piece`` slices; returns a note when memory did not suffice."""
        self.loss, self.figures, note = None, {}, None
        try:
            if self._held_out is not None:
                self.loss = finite({"the validation loss": self._loss(network, piece)}).get("the validation loss")
            if self._evaluate is not None:
                self.figures = finite(self._evaluate(network))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            note = "out of memory while evaluating: left out"
        free_memory(self._device)
        return note

    def entry(self) -> dict[str, float]:
        """What was measured, for the history."""
        figures = {name: value for name, value in self.figures.items() if name not in _OWN_KEYS}
        return figures if self.loss is None else {"validation_loss": self.loss, **figures}

    @torch.inference_mode()
    def _loss(self, network: nn.Module, piece: int) -> float:
        """Training loss on the same samples and noise every time."""
        generator = torch.Generator().manual_seed(20240229)
        size = self._settings.batch_size
        samples = self._held_out.held_out(min(_BATCHES, max(1, len(self._held_out.index) // size)) * size, generator)
        total = 0.0
        for part in samples.split(piece):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.amp):
                loss = self._method.training_loss(network, self._config, part, generator)
            total += float(loss) * len(part)
        return total / len(samples)


def record(history: list[dict[str, Any]], entry: dict[str, Any], notes: Sequence[str]) -> list[dict[str, Any]]:
    """``history`` with an entry more, which carries the notes that are in no entry before.

    A long history is thinned to every second entry: a week-long run keeps its whole curve at a lower resolution, and
    its checkpoints do not grow.
    """
    known = "; ".join(old["note"] for old in history if "note" in old)
    news = [note for note in notes if note not in known]
    history = [*history, entry | ({"note": "; ".join(news)} if news else {})]
    if len(history) <= _MAX_HISTORY:
        return history
    last = len(history) - 1
    return [old for index, old in enumerate(history) if index % 2 == 0 or index == last or "note" in old]


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The finite ones as floats; the others are named in the log and left out."""
    found = {name: float(value) for name, value in numbers.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            _LOG.warning("%s is %s and left out", name, value)
    return {name: value for name, value in found.items() if math.isfinite(value)}
