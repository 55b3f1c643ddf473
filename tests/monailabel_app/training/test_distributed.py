"""Several processes: the curve of one, decisions in common, and nobody left waiting. Two on the CPU, by torchrun."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.training import distributed
from monailabel_app.training.checkpoint import load_state
from monailabel_app.training.distributed import Group, is_distributed, launch, process_group
from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, random_cache
from tests.monailabel_app.training.distributed_worker import SETTINGS

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes did: a function from a run's name and a rank to its results, and the folder."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        launch([str(folder), "all"], 2, program=WORKER)

    def read(name, rank=0):
        return json.loads((folder / f"{name}_{rank}.json").read_text())

    read.folder = folder
    return read


def alone(folder, **changes):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = replace(SETTINGS, **changes)
        return train("ddpm", TINY["ddpm"], random_cache(2), random_cache(1, seed=50), settings, folder)
    finally:
        torch.set_num_threads(before)


def column(history, name):
    return [entry[name] for entry in history]


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one_with_two_lanes(two, tmp_path):
    one = alone(tmp_path, lanes=2)
    both = two("whole")
    assert both["step"] == one.step
    assert both["lanes"] == 2
    for name in ("loss", "validation_loss"):
        assert column(both["history"], name) == pytest.approx(column(one.history, name), abs=1e-5)
    saved = load_state(two.folder / "whole")
    for name, value in one.ema.items():
        torch.testing.assert_close(saved.ema[name], value, atol=1e-4, rtol=1e-3)
    assert torch.equal(saved.generator, one.generator)


@pytest.mark.slow
def test_two_processes_stay_close_to_one_with_the_whole_batch(two, tmp_path):
    one = alone(tmp_path)
    assert column(two("whole")["history"], "loss") == pytest.approx(column(one.history, "loss"), rel=0.3)


@pytest.mark.slow
def test_both_processes_end_with_the_same_weights_and_one_of_them_evaluates_and_tells(two):
    first, second = two("whole", 0), two("whole", 1)
    assert first["sum"] == second["sum"]
    assert [now["step"] for now in first["told"]] == [2, 4, 6, 8]
    assert all(now["figures"] == {"quality": 0.5} for now in first["told"])
    assert second["told"] == []


@pytest.mark.slow
def test_a_stopped_pair_goes_on_as_if_it_had_never_stopped(two):
    assert two("parts")["history"] == [
        {name: value for name, value in entry.items() if name != "quality"} for entry in two("whole")["history"]
    ]
    assert two("parts")["sum"] == two("whole")["sum"]


@pytest.mark.slow
def test_one_process_out_of_memory_makes_both_use_more_lanes(two):
    assert two("memory")["lanes"] == two("memory", 1)["lanes"] == 4
    assert two("memory")["told"][-1]["notes"] == ["out of memory at step 0: batch 2 x 4 -> 4 x 2"]
    assert two("memory")["sum"] == two("memory", 1)["sum"]
    assert two("sizes", 1) == [4, *[2] * 16]
    assert two("sizes", 0)[:3] == [4, 2, 2]


@pytest.mark.slow
def test_one_process_with_a_broken_loss_stops_both(two):
    for rank in (0, 1):
        assert "finite loss" in two("nan", rank)["message"]


@pytest.mark.slow
def test_both_processes_stop_at_the_same_step_when_the_time_is_up(two):
    assert 0 <= two("time", 0)["step"] == two("time", 1)["step"] < 10**6


@pytest.mark.slow
def test_a_batch_smaller_than_the_number_of_processes_is_refused(two):
    assert "at least one slice per process" in two("small", 1)["message"]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_at_once_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = time.monotonic()
    with pytest.raises(TrainingFailed, match="--resume"):
        launch([str(tmp_path), "dies"], 2, program=WORKER)
    assert time.monotonic() - started < 60 * distributed.TIMEOUT_MINUTES
    assert load_state(tmp_path / "dies").step == 2


_WAITS = """
import os, pathlib, sys, time
from monailabel_app.training.distributed import process_group, rank
with process_group("cpu"):
    pathlib.Path(sys.argv[1], f"pid_{rank()}").write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_processes_end_when_their_launcher_is_killed(tmp_path):
    (tmp_path / "waits.py").write_text(_WAITS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    launcher = subprocess.Popen([*command, str(tmp_path / "waits.py"), str(tmp_path)], env=environment)
    files = [tmp_path / f"pid_{rank}" for rank in (0, 1)]
    try:
        assert wait(lambda: all(file.is_file() and file.read_text() for file in files))
    finally:
        launcher.kill()
        launcher.wait()
    assert wait(lambda: not any(alive(int(file.read_text())) for file in files))


def wait(condition, seconds=600.0):
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return condition()


def alive(pid):
    """Whether a process runs; one that ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_single_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_distributed()
    with process_group("cpu") as (group, device):
        assert (group.rank, group.world, group.is_first, device.type) == (0, 1, True, "cpu")
        assert not torch.distributed.is_initialized()


def test_a_group_of_one_returns_what_it_is_given():
    group, layer = Group(), torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad.clone()
    group.sum_gradients(layer.parameters())
    assert torch.equal(layer.weight.grad, before)
    assert group.total([1, 2.5]) == [1.0, 2.5]
    assert group.from_first(3.0) == 3.0
    group.check(None)
    with pytest.raises(KeyError):
        group.check(KeyError("x"))


def test_torchruns_environment_is_read(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.rank(), distributed.world_size(), is_distributed()) == (3, 4, True)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingFailed, match="one process per GPU"), process_group("cuda"):
        pass


def test_no_process_at_all_is_refused():
    with pytest.raises(InvalidSettings, match="at least 1 process"):
        launch([], 0)


def test_launching_runs_main_by_torchrun_without_the_callers_ranks(monkeypatch):
    seen = {}

    class Result:
        returncode = 0

    def run(command, env, check):
        seen.update(command=command, env=env)
        return Result()

    monkeypatch.setenv("RANK", "7")
    monkeypatch.setattr(distributed.subprocess, "run", run)
    launch(["train-worker", "folder"], 3)
    assert seen["command"][1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert seen["command"][-5:] == ["--nproc_per_node", "3", str(ROOT / "main.py"), "train-worker", "folder"]
    assert "RANK" not in seen["env"]
