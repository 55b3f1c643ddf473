"""Measuring: finite numbers only, memory that runs out does not end a run, and a history that stays small."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from monailabel_app.training.settings import TrainSettings
from monailabel_app.training.slices import SlicePool
from monailabel_app.training.validation import Validator, record
from tests.monailabel_app.synthetic import random_cache

CPU = torch.device("cpu")


def validator(loss=lambda *_: torch.tensor(0.5), evaluate=None):
    pool = SlicePool(random_cache(1), CPU)
    settings = TrainSettings(batch_size=4, amp=False)
    return Validator(SimpleNamespace(training_loss=loss), None, settings, CPU, pool, evaluate)


def test_the_loss_is_the_mean_over_slices_whatever_the_pieces():
    def loss(network, config, batch, generator):
        return batch.mean()

    measured = []
    for piece in (4, 3, 1):
        made = validator(loss)
        assert made.measure(torch.nn.Identity(), piece) is None
        measured.append(made.loss)
    assert measured == pytest.approx([measured[0]] * 3, rel=1e-4)


def test_numbers_that_are_not_finite_are_left_out(caplog):
    made = validator(lambda *_: torch.tensor(math.nan), lambda _: {"quality": 0.5, "broken": math.nan, "far": math.inf})
    made.measure(torch.nn.Identity(), 4)
    assert made.entry() == {"quality": 0.5}
    assert "broken" in caplog.text


def test_memory_that_does_not_suffice_is_noted_and_the_run_goes_on():
    def full(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    made = validator(evaluate=full)
    assert "out of memory" in made.measure(torch.nn.Identity(), 4)
    assert made.entry() == {"validation_loss": 0.5}


def test_another_error_of_the_evaluation_is_not_hidden():
    def wrong(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        validator(evaluate=wrong).measure(torch.nn.Identity(), 4)


def test_a_resumed_run_begins_with_what_was_measured_last():
    made = validator()
    made.take_over([{"step": 1, "epoch": 0, "loss": 1.0, "validation_loss": 0.25, "quality": 0.5, "note": "x"}])
    assert (made.loss, made.figures) == (0.25, {"quality": 0.5})


def test_a_history_of_a_week_stays_small_and_spans_it():
    history = []
    for step in range(1, 7001):
        history = record(history, {"step": step, "loss": 1.0}, ["memory"] if step >= 700 else [])
    assert len(history) <= 2000
    steps = [entry["step"] for entry in history]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 7000)
    assert [entry["step"] for entry in history if "note" in entry] == [700]
    assert len(json.dumps(history)) < 100_000


def test_each_note_is_in_the_entry_after_it_only():
    first = record([], {"step": 1}, ["a"])
    assert record(first, {"step": 2}, ["a", "b"]) == [{"step": 1, "note": "a"}, {"step": 2, "note": "b"}]
