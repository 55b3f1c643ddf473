"""What lies outside the loop: methods that are computed instead of trained, and what a trained network learns last."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .cache import TrainingCache
from .checkpoint import TrainingState, save_state
from .settings import TrainSettings, identity


def is_computed(method: ModuleType) -> bool:
    """Whether a method follows from the healthy scans in one pass, without an optimizer."""
    return hasattr(method, "fit_cache")


def compute(
    method: ModuleType, method_id: str, config: Any, cache: TrainingCache, settings: TrainSettings, run_folder: Path
) -> TrainingState:
    """The state of such a method, saved as a run of one step."""
    weights = method.fit_cache(config, cache.images, cache.brain_masks)
    state = TrainingState(
        model=dict(weights),
        ema=dict(weights),
        optimizer={"state": {}, "param_groups": []},
        generator=torch.Generator().manual_seed(settings.seed).get_state(),
        step=1,
        seconds=0.0,
        history=[{"step": 1, "epoch": 1, "loss": 0.0}],
        settings=identity(method_id, config, settings),
    )
    save_state(run_folder, state)
    return state


def complete(
    method: ModuleType,
    config: Any,
    cache: TrainingCache,
    settings: TrainSettings,
    run_folder: Path,
    state: TrainingState,
) -> TrainingState:
    """Let a method learn what it needs from the healthy scans with its finished weights, such as what is normal where.

    ``finish(network, config, images, brain_masks, generator)`` changes buffers of the averaged network only; images are
    uint8 and masks bool, (n, X, Y, Z). The run's last checkpoint is written again with them.
    """
    if not hasattr(method, "finish"):
        return state
    network = method.build(config)
    network.load_state_dict(state.ema)
    network.to(settings.device).eval()
    generator = torch.Generator().manual_seed(settings.seed)
    method.finish(network, config, cache.images, cache.brain_masks, generator)
    state.ema = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    save_state(run_folder, state)
    return state
