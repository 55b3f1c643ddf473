"""Runs of the training loop for its tests, and how they are compared."""

from pathlib import Path

import torch

from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING

ROOT = Path(__file__).resolve().parents[3]


class Stopped(Exception):
    """What an interruption raises."""


def run(folder, cache, held_out=None, *, settings=TINY_TRAINING, config=TINY["ddpm"], resume=False, stop_at=None):
    """Train the tiny ``ddpm``; raises Stopped when it tells of step ``stop_at``."""

    def progress(now):
        if now.step == stop_at:
            raise Stopped

    return train("ddpm", config, cache, held_out, settings, folder, resume=resume, progress=progress)


def assert_same(a, b):
    """Two states agree in everything but the time they took."""
    assert a.step == b.step
    assert a.history == b.history
    assert torch.equal(a.generator, b.generator)
    parts = [(getattr(a, part), getattr(b, part)) for part in ("model", "ema")]
    slots = [state.optimizer["state"] for state in (a, b)]
    parts += [(slots[0][index], slots[1][index]) for index in slots[0]]
    for part, (left, right) in enumerate(parts):
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), f"{part}/{name}"
