"""The training loop: it can be killed, it repeats, it stops in time, and what it keeps is the average."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.methods import ddpm
from monailabel_app.training.checkpoint import LAST, PREVIOUS, load_state
from monailabel_app.training.healthy_loop import TrainSettings, train
from monailabel_app.training.slices import SlicePool
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache, tiny
from tests.monailabel_app.training.loop_runs import ROOT, Stopped, assert_same, run


@pytest.fixture(scope="module")
def cache():
    return random_cache(2)


@pytest.fixture(scope="module")
def held_out():
    return random_cache(1, seed=50)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_run_repeats_from_its_seed_and_differs_with_another(tmp_path, cache):
    first, again = run(tmp_path / "a", cache), run(tmp_path / "b", cache)
    assert_same(first, again)
    other = run(tmp_path / "c", cache, settings=replace(TINY_TRAINING, seed=1))
    assert other.history != first.history


@pytest.mark.parametrize(("stop_at", "lanes"), [(2, 1), (6, 3)])
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(tmp_path, cache, held_out, stop_at, lanes):
    settings = replace(TINY_TRAINING, lanes=lanes)
    whole = run(tmp_path / "whole", cache, held_out, settings=settings)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", cache, held_out, settings=settings, stop_at=stop_at)
    assert load_state(tmp_path / "parts").step == stop_at
    assert len(load_state(tmp_path / "parts").generator) == lanes
    resumed = run(tmp_path / "parts", cache, held_out, settings=TINY_TRAINING, resume=True)
    assert_same(resumed, whole)
    assert len(whole.history) == 4
    assert all("validation_loss" in entry for entry in whole.history)


_KILLED = """
import os, pathlib, signal, sys, torch
torch.set_num_threads(1)
from monailabel_app.methods import ddpm
from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache
calls, honest = [], ddpm.training_loss
def training_loss(*arguments):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*arguments)
ddpm.training_loss = training_loss
train("ddpm", TINY["ddpm"], random_cache(2), None, TINY_TRAINING, pathlib.Path(sys.argv[1]))
"""


def test_a_killed_process_goes_on_as_if_it_had_never_been_killed(tmp_path, cache):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "killed")], cwd=ROOT, timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert load_state(tmp_path / "killed").step == 4
    resumed = run(tmp_path / "killed", cache, resume=True)
    whole = run(tmp_path / "whole", cache)
    assert_same(resumed, whole)
    assert_same(load_state(tmp_path / "killed"), load_state(tmp_path / "whole"))


def test_resuming_a_finished_run_changes_nothing(tmp_path, cache):
    finished = run(tmp_path, cache)
    again = run(tmp_path, cache, resume=True)
    assert_same(again, finished)


@pytest.mark.parametrize(
    ("changed", "config"),
    [
        ({"learning_rate": 1e-3}, TINY["ddpm"]),
        ({"seed": 5}, TINY["ddpm"]),
        ({"steps": 10}, TINY["ddpm"]),
        ({}, tiny("ddpm", draws=3)),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(tmp_path, cache, changed, config):
    run(tmp_path, cache, settings=replace(TINY_TRAINING, steps=2))
    before = (tmp_path / LAST).read_bytes()
    settings = replace(TINY_TRAINING, **{"steps": 2, **changed})
    with pytest.raises(TrainingFailed, match="same method, configuration and settings"):
        run(tmp_path, cache, settings=settings, config=config, resume=True)
    assert (tmp_path / LAST).read_bytes() == before


def test_where_and_how_long_a_run_goes_on_may_change(tmp_path, cache):
    with pytest.raises(Stopped):
        run(tmp_path, cache, stop_at=2)
    resumed = run(tmp_path, cache, settings=replace(TINY_TRAINING, minutes=60.0, checkpoint_every=4), resume=True)
    assert resumed.step == TINY_TRAINING.steps


def test_resuming_without_a_checkpoint_is_refused(tmp_path, cache):
    with pytest.raises(TrainingFailed, match="without --resume"):
        run(tmp_path, cache, resume=True)


def test_the_time_limit_ends_a_run(tmp_path, cache):
    state = run(tmp_path, cache, settings=replace(TINY_TRAINING, steps=10**6, minutes=0.0005))
    assert 0 < state.step < 10**6
    assert load_state(tmp_path).step == state.step


def poisoned(at_step, poison, monkeypatch):
    """``ddpm`` whose loss goes through ``poison`` from a step on."""
    calls, honest = [], ddpm.training_loss

    def training_loss(model, config, batch, generator):
        calls.append(1)
        loss = honest(model, config, batch, generator)
        return poison(loss) if len(calls) > at_step else loss

    monkeypatch.setattr(ddpm, "training_loss", training_loss)


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize(
    "poison",
    [lambda loss: loss * float("nan"), lambda loss: loss + float("inf"), _InfiniteGradient.apply],
    ids=["nan_loss", "infinite_loss", "infinite_gradient"],
)
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, cache, monkeypatch, poison):
    poisoned(5, poison, monkeypatch)
    with pytest.raises(TrainingFailed, match="finite"):
        run(tmp_path, cache)
    kept = load_state(tmp_path)
    assert kept.step == 4
    assert all(torch.isfinite(value).all() for value in (*kept.model.values(), *kept.ema.values()))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB: room for three checkpoints of the tiny network, and not many more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_the_run_goes_on_when_there_is_space(tmp_path, cache, small_disk):
    whole = run(tmp_path / "whole", cache)

    def fill(now):
        if now.step == 4:
            room = shutil.disk_usage(small_disk).free
            (small_disk / "other").write_bytes(b"x" * (room - 30_000))

    with pytest.raises(TrainingFailed, match="No space left"):
        train("ddpm", TINY["ddpm"], cache, None, TINY_TRAINING, small_disk, progress=fill)
    assert load_state(small_disk).step == 4
    assert sorted(path.name for path in small_disk.iterdir()) == [LAST, "other", PREVIOUS]
    (small_disk / "other").unlink()
    assert_same(run(small_disk, cache, resume=True), whole)


def test_a_disk_that_cannot_be_written_is_found_before_the_first_step(tmp_path, cache, monkeypatch):
    poisoned(0, lambda loss: pytest.fail("trained"), monkeypatch)
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(TrainingFailed, match="step 0"):
        run(tmp_path / "run", cache)


def test_the_kept_average_lags_behind_the_weights_and_starts_with_them(tmp_path, cache):
    one = run(tmp_path / "one", cache, settings=replace(TINY_TRAINING, steps=1))
    assert all(torch.equal(one.ema[name], value) for name, value in one.model.items())
    state = run(tmp_path / "more", cache)
    assert any(not torch.equal(state.ema[name], value) for name, value in state.model.items())


def test_the_average_is_the_exponential_mean_of_the_weights(tmp_path, cache):
    settings = replace(TINY_TRAINING, steps=3, checkpoint_every=1, ema=0.15)
    weights = []

    def progress(now):
        weights.append({k: v.clone() for k, v in load_state(tmp_path).model.items()})

    state = train("ddpm", TINY["ddpm"], cache, None, settings, tmp_path, progress=progress)
    for name, value in state.ema.items():
        # 2 / 11 after one step would be more than the decay asked for.
        expected = 0.15 * (0.15 * weights[0][name] + 0.85 * weights[1][name]) + 0.85 * weights[2][name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


def test_training_lowers_the_loss(tmp_path, cache):
    settings = replace(TINY_TRAINING, steps=24, batch_size=6, checkpoint_every=4, ema=0.9)
    history = run(tmp_path, cache, cache, settings=settings).history
    assert history[-1]["validation_loss"] < 0.8 * history[0]["validation_loss"]


def test_bfloat16_training_stays_finite(tmp_path, cache):
    state = run(tmp_path, cache, settings=replace(TINY_TRAINING, amp=True))
    assert all(torch.isfinite(value).all() for value in state.ema.values())


def test_a_cache_without_brain_is_refused(tmp_path, cache):
    empty = replace(cache, brain_masks=torch.zeros_like(cache.brain_masks))
    with pytest.raises(TrainingFailed, match="slices with brain"):
        run(tmp_path, empty)


def test_progress_tells_where_the_run_is_and_how_long_it_still_takes(tmp_path, cache, held_out):
    seen = []
    settings = replace(TINY_TRAINING, steps=10**7, max_epochs=0.55)
    train("ddpm", TINY["ddpm"], cache, held_out, settings, tmp_path, progress=seen.append)
    slices = len(SlicePool(cache, torch.device("cpu")))
    steps = math.ceil(0.55 * slices / settings.batch_size)
    assert [now.step for now in seen] == [*range(2, steps, 2), steps]
    assert {now.steps for now in seen} == {steps}
    assert {(now.epoch, now.total_epochs) for now in seen} == {(0, 1)}
    assert seen[-1].share == 1.0
    assert seen[-1].seconds_left == 0.0
    left = [now.seconds_left for now in seen]
    assert all(now.slices_per_second > 0 and now.validation_loss > 0 and now.checkpoint for now in seen)
    assert all(math.isfinite(value) and value >= 0 for value in left)
    # At the speed so far: what was done over what is still to do.
    for now in seen[:-1]:
        assert now.seconds_left / now.seconds == pytest.approx((steps - now.step) / now.step, rel=0.2)


def test_progress_comes_between_checkpoints_as_well(tmp_path, cache):
    seen = []
    settings = replace(TINY_TRAINING, checkpoint_every=4, progress_seconds=0)
    train("ddpm", TINY["ddpm"], cache, None, settings, tmp_path, progress=seen.append)
    assert [(now.step, now.checkpoint) for now in seen] == [(n, n % 4 == 0) for n in range(1, 9)]
    assert all(math.isfinite(now.loss) for now in seen)


def test_a_checkpoint_is_never_older_than_asked_and_does_not_change_the_curve(tmp_path, cache):
    often = replace(TINY_TRAINING, checkpoint_every=4, checkpoint_minutes=0, progress_seconds=0)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", cache, settings=often, stop_at=4)
    stopped = load_state(tmp_path / "parts")
    (tmp_path / "parts" / LAST).unlink()  # what is left is the one of step 3, in the middle of an entry
    assert (stopped.step, load_state(tmp_path / "parts").step) == (4, 3)
    resumed = run(tmp_path / "parts", cache, settings=often, resume=True)
    assert_same(resumed, run(tmp_path / "whole", cache, settings=replace(TINY_TRAINING, checkpoint_every=4)))


def test_a_short_run_is_validated_at_its_end(tmp_path, cache, held_out):
    state = run(tmp_path, cache, held_out, settings=replace(TINY_TRAINING, steps=3, checkpoint_every=250))
    assert [entry["step"] for entry in state.history] == [3]
    assert state.history[0]["validation_loss"] > 0
    assert_same(load_state(tmp_path), state)


def test_the_evaluation_gets_the_averaged_network_and_does_not_disturb_the_run(tmp_path, cache):
    plain = run(tmp_path / "plain", cache)
    seen, weights = [], []

    def evaluate(network):
        assert not network.training
        torch.manual_seed(7)
        torch.rand(5)
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"quality": 0.25 * len(weights), "broken": math.nan}

    state = train(
        "ddpm", TINY["ddpm"], cache, None, TINY_TRAINING, tmp_path / "run", progress=seen.append, evaluate=evaluate
    )
    assert [entry.pop("quality") for entry in state.history] == [0.25, 0.5, 0.75, 1.0]
    assert [now.figures for now in seen] == [{"quality": q} for q in (0.25, 0.5, 0.75, 1.0)]
    assert_same(state, plain)
    assert all(torch.equal(weights[-1][name], value) for name, value in state.ema.items())


def test_a_run_starts_from_given_weights_and_averages_from_them(tmp_path, cache):
    given = {name: value + 0.01 for name, value in run(tmp_path / "first", cache).ema.items()}
    seen = []
    settings = replace(TINY_TRAINING, ema=0.05, steps=1, learning_rate=1e-9, weight_decay=0, warmup=0)
    arguments = ("ddpm", TINY["ddpm"], cache, None, settings, tmp_path / "run")
    state = train(*arguments, start_from=given, progress=lambda now: seen.append(now.step))
    for part in (state.model, state.ema):
        assert all(torch.allclose(part[name], value, atol=1e-6) for name, value in given.items())
    faster = train(*arguments[:4], replace(settings, learning_rate=0.1), tmp_path / "fast", start_from=given)
    for name, value in faster.ema.items():
        torch.testing.assert_close(value, 0.05 * given[name] + 0.95 * faster.model[name])


@pytest.mark.parametrize("change", [lambda w: w.pop(next(iter(w))), lambda w: w.update(more=torch.zeros(1))])
def test_weights_of_another_network_are_refused(tmp_path, cache, change):
    given = dict(ddpm.build(TINY["ddpm"]).state_dict())
    change(given)
    with pytest.raises(TrainingFailed, match="weights of this method"):
        train("ddpm", TINY["ddpm"], cache, None, TINY_TRAINING, tmp_path, start_from=given)
    assert not any(tmp_path.iterdir())


def test_weights_that_break_are_not_saved(tmp_path, cache, monkeypatch):
    steps, honest = [], torch.optim.AdamW.step

    def step(self):
        honest(self)
        steps.append(1)
        if len(steps) == 4:
            self.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingFailed, match="finite weights, got others at step 4"):
        run(tmp_path, cache)
    kept = load_state(tmp_path)
    assert kept.step == 2
    assert all(torch.isfinite(value).all() for value in (*kept.model.values(), *kept.ema.values()))


def test_a_batch_in_lanes_trains_like_a_whole_one(tmp_path, cache):
    settings = replace(TINY_TRAINING, steps=20, batch_size=6, checkpoint_every=5)
    whole = run(tmp_path / "whole", cache, settings=settings).history
    lanes = run(tmp_path / "lanes", cache, settings=replace(settings, lanes=2)).history
    assert [entry["loss"] for entry in lanes] != [entry["loss"] for entry in whole]
    for a, b in zip(whole, lanes, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.25)
    assert lanes[-1]["loss"] < lanes[0]["loss"]


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path, cache, monkeypatch):
    def wrong(loss):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    poisoned(3, wrong, monkeypatch)
    with pytest.raises(RuntimeError, match="mat1"):
        run(tmp_path, cache)
    assert load_state(tmp_path).step == 2


def test_dropout_is_the_same_in_a_resumed_run(tmp_path, cache, monkeypatch):
    honest = ddpm.training_loss

    def training_loss(model, config, batch, generator):
        return honest(model, config, batch, generator) * torch.nn.functional.dropout(torch.ones(50)).mean()

    monkeypatch.setattr(ddpm, "training_loss", training_loss)
    whole = run(tmp_path / "whole", cache)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", cache, stop_at=4)
    torch.manual_seed(99)
    assert_same(run(tmp_path / "parts", cache, resume=True), whole)


def test_the_defaults_are_those_a_running_training_was_started_with():
    assert TrainSettings() == TrainSettings(
        steps=20000, batch_size=16, learning_rate=4e-4, weight_decay=1e-4, warmup=200, ema=0.999, clip=1.0, seed=0
    )
