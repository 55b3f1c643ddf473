"""What a training run is told, and what it tells while it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from monailabel_app.errors import InvalidSettings

# Where, how long and in how many pieces a run is computed may change when it goes on; what it computes may not.
_CHANGEABLE = {"device", "minutes", "checkpoint_every", "checkpoint_minutes", "progress_seconds", "lanes"}


@dataclass(frozen=True)
class TrainSettings:
    """steps, minutes or max_epochs, whichever ends first, end the run; the learning rate follows the largest share.

    learning_rate is reached after ``warmup`` steps and falls to zero along a cosine. ema: decay of the averaged
    weights, which are what is kept; young averages decay faster, min(ema, (1 + n) / (10 + n)) after n steps, so that
    a short run is not an average of its random start. amp: bfloat16 autocast. checkpoint_every: steps between
    validations, each with a history entry and a checkpoint; checkpoint_minutes: a checkpoint is never older than this.
    progress_seconds: time between progress reports. max_epochs: slices seen over slices in the cache.

    batch_size: slices per step, over all lanes and processes. lanes: pieces that a batch is computed in, one after the
    other or by several processes, each with its own stream of random numbers.

    Raises InvalidSettings when made with values outside their range.
    """

    steps: int = 20000
    minutes: float = math.inf
    batch_size: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    amp: bool = True
    device: str = "cpu"
    checkpoint_every: int = 250
    max_epochs: float = math.inf
    lanes: int = 1
    checkpoint_minutes: float = 5.0
    progress_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "lanes"):
            if not getattr(self, name) >= 1:
                raise InvalidSettings(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("minutes", "max_epochs", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InvalidSettings(f"expected {name} above 0, got {getattr(self, name)}")
        if not math.isfinite(self.learning_rate):
            raise InvalidSettings(f"expected a finite learning_rate, got {self.learning_rate}")
        if not 0 <= self.ema < 1:
            raise InvalidSettings(f"expected ema from 0 to below 1, got {self.ema}")
        if self.lanes > self.batch_size:
            raise InvalidSettings(f"expected at most {self.batch_size} lanes, one per slice, got {self.lanes}")

    def lasting(self) -> dict[str, Any]:
        """The settings that make a run what it is, as JSON values (no limit is None)."""
        values = {name: value for name, value in asdict(self).items() if name not in _CHANGEABLE}
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class TrainProgress:
    """What a progress bar, a log line or a viewer shows. Every number is finite.

    share: 0..1 of the run. steps, total_epochs: expected, since a time limit only tells while running.
    epoch: slices seen // slices in the cache. loss: mean since the checkpoint before. validation_loss, figures: the
    latest, of the averaged weights. seconds: since the start, pauses between resumed runs left out. notes: what
    happened on the way, such as "out of memory at step 12: batch 16 -> 2 x 8". checkpoint: told right after one, when
    validation_loss and figures are new.
    """

    step: int
    share: float
    loss: float
    validation_loss: float | None
    slices_per_second: float
    seconds: float
    steps: int = 0
    epoch: int = 0
    total_epochs: int = 1
    seconds_left: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checkpoint: bool = False


def identity(method_id: str, config: Any, settings: TrainSettings) -> dict[str, Any]:
    """What a checkpoint records of its run, as it comes back from JSON."""
    return _plain({"method": method_id, "config": asdict(config), "settings": settings.lasting()})


def same_run(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's record is that of this run; settings it does not know had their defaults."""
    defaults = TrainSettings().lasting()
    settings = {name: recorded.get("settings", {}).get(name, value) for name, value in defaults.items()}
    return {**recorded, "settings": settings} == now


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
