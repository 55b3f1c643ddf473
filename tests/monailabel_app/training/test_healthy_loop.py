"""The training loop: it can be killed, it repeats, it stops in time, and what it keeps is the average."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.methods import ddpm
from monailabel_app.training.checkpoint import LAST, PREVIOUS, load_state
from monailabel_app.training.healthy_loop import TrainSettings, train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache, tiny

ROOT = Path(__file__).resolve().parents[3]


class Stopped(Exception):
    """What an interruption raises."""


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


def run(folder, cache, held_out=None, *, settings=TINY_TRAINING, config=TINY["ddpm"], resume=False, stop_at=None):
    def progress(now):
        if now.step == stop_at:
            raise Stopped

    return train("ddpm", config, cache, held_out, settings, folder, resume=resume, progress=progress)


def assert_same(a, b):
    assert a.step == b.step
    assert a.history == b.history
    for part in ("model", "ema"):
        left, right = getattr(a, part), getattr(b, part)
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), f"{part}/{name}"


def test_a_run_repeats_from_its_seed_and_differs_with_another(tmp_path, cache):
    first, again = run(tmp_path / "a", cache), run(tmp_path / "b", cache)
    assert_same(first, again)
    other = run(tmp_path / "c", cache, settings=replace(TINY_TRAINING, seed=1))
    assert other.history != first.history


@pytest.mark.parametrize("stop_at", [2, 6])
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(tmp_path, cache, held_out, stop_at):
    whole = run(tmp_path / "whole", cache, held_out)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", cache, held_out, stop_at=stop_at)
    assert load_state(tmp_path / "parts").step == stop_at
    resumed = run(tmp_path / "parts", cache, held_out, resume=True)
    assert_same(resumed, whole)
    assert len(whole.history) == 4
    assert all("validation_loss" in entry for entry in whole.history)


def test_a_killed_process_goes_on_as_if_it_had_never_been_killed(tmp_path, cache):
    settings = replace(TINY_TRAINING, steps=400)
    script = (
        "import sys, pathlib, torch; torch.set_num_threads(1)\n"
        "from dataclasses import replace\n"
        "from monailabel_app.training.healthy_loop import train\n"
        "from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache\n"
        "def tell(now): print(now.step, flush=True)\n"
        "train('ddpm', TINY['ddpm'], random_cache(2), None, replace(TINY_TRAINING, steps=400),"
        " pathlib.Path(sys.argv[1]), progress=tell)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        seen = [process.stdout.readline() for _ in range(3)]
    finally:
        process.kill()
        process.stdout.close()
        code = process.wait()
    assert seen[-1].strip() == "6"
    assert code == -signal.SIGKILL
    reached = load_state(tmp_path / "killed").step
    assert 6 <= reached < 400

    end = reached + 4
    with pytest.raises(Stopped):
        run(tmp_path / "killed", cache, settings=settings, resume=True, stop_at=end)
    with pytest.raises(Stopped):
        run(tmp_path / "whole", cache, settings=settings, stop_at=end)
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


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, cache, monkeypatch):
    from monailabel_app.training import checkpoint

    real, calls = checkpoint.save_file, []

    def full(tensors, path, metadata):
        calls.append(1)
        if len(calls) < 3:
            return real(tensors, path, metadata)
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingFailed, match="No space left"):
        run(tmp_path, cache)
    monkeypatch.undo()
    assert load_state(tmp_path).step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert_same(run(tmp_path, cache, resume=True), run(tmp_path / "whole", cache))


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
    settings = replace(TINY_TRAINING, steps=40, batch_size=8, checkpoint_every=4, ema=0.9)
    history = run(tmp_path, cache, cache, settings=settings).history
    assert history[-1]["validation_loss"] < 0.8 * history[0]["validation_loss"]


def test_bfloat16_training_stays_finite(tmp_path, cache):
    state = run(tmp_path, cache, settings=replace(TINY_TRAINING, amp=True))
    assert all(torch.isfinite(value).all() for value in state.ema.values())


def test_a_cache_without_brain_is_refused(tmp_path, cache):
    empty = replace(cache, brain_masks=torch.zeros_like(cache.brain_masks))
    with pytest.raises(TrainingFailed, match="slices with brain"):
        run(tmp_path, empty)


def test_progress_tells_step_share_and_speed(tmp_path, cache, held_out):
    seen = []
    train("ddpm", TINY["ddpm"], cache, held_out, TINY_TRAINING, tmp_path, progress=seen.append)
    assert [now.step for now in seen] == [2, 4, 6, 8]
    assert all(0 <= now.share <= 1 and now.slices_per_second > 0 and now.validation_loss > 0 for now in seen)


def test_the_defaults_are_those_a_running_training_was_started_with():
    assert TrainSettings() == TrainSettings(
        steps=20000, batch_size=16, learning_rate=4e-4, weight_decay=1e-4, warmup=200, ema=0.999, clip=1.0, seed=0
    )
