"""Running out of memory: smaller pieces, the same step again, a note, and an end when nothing is left to halve."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.methods import ddpm
from monailabel_app.training.checkpoint import load_state
from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache
from tests.monailabel_app.training.loop_runs import ROOT, Stopped, assert_same, run


@pytest.fixture(scope="module")
def cache():
    return random_cache(2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def limited(memory, monkeypatch, error=torch.cuda.OutOfMemoryError):
    """``ddpm`` that has memory for so many slices at a time; returns the sizes that were tried."""
    sizes, honest = [], ddpm.training_loss

    def training_loss(model, config, batch, generator):
        sizes.append(len(batch))
        loss = honest(model, config, batch, generator)
        if len(batch) > memory[0]:
            raise error("CUDA out of memory. Tried to allocate 20.00 GiB")
        return loss

    monkeypatch.setattr(ddpm, "training_loss", training_loss)
    return sizes


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_run_out_of_memory_halves_its_pieces_and_says_so(tmp_path, cache, monkeypatch, caplog, error):
    sizes = limited([1], monkeypatch, error)
    seen = []
    state = train("ddpm", TINY["ddpm"], cache, None, TINY_TRAINING, tmp_path, progress=seen.append)
    assert sizes == [4, 2, *[1] * 32]
    notes = ("out of memory at step 0: batch 4 -> 2 x 2", "out of memory at step 0: batch 2 x 2 -> 4 x 1")
    assert seen[0].notes == seen[-1].notes == notes
    assert [entry.get("note") for entry in state.history] == ["; ".join(notes), None, None, None]
    assert notes[0] in caplog.text
    assert state.step == TINY_TRAINING.steps
    assert len(state.generator) == 4


_LITTLE_MEMORY = """
import json, pathlib, re, resource, sys, torch
from dataclasses import replace
from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache
torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False
folder, cache = pathlib.Path(sys.argv[1]), random_cache(2)
train("ddpm", TINY["ddpm"], cache, None, replace(TINY_TRAINING, steps=1), folder / "first")
used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
state = train("ddpm", TINY["ddpm"], cache, None, replace(TINY_TRAINING, steps=1, batch_size=256), folder / "run")
print(json.dumps([state.step, state.notes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_process_that_really_has_too_little_memory_goes_on_in_smaller_pieces(tmp_path):
    command = [sys.executable, "-c", _LITTLE_MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=600, stdout=subprocess.PIPE, text=True, check=True)
    step, notes = json.loads(done.stdout.splitlines()[-1])
    assert step == 1
    assert notes[0] == "out of memory at step 0: batch 256 -> 2 x 128"


def test_the_step_that_ran_out_of_memory_is_done_again_with_the_same_numbers(tmp_path, cache, monkeypatch):
    in_lanes = run(tmp_path / "lanes", cache, settings=replace(TINY_TRAINING, lanes=2))
    limited([2], monkeypatch)
    state = run(tmp_path / "run", cache)
    assert state.history[0].pop("note")
    assert_same(state, in_lanes)


def test_a_run_out_of_memory_goes_on_in_its_lanes_when_it_is_resumed(tmp_path, cache, monkeypatch):
    memory = [4]
    limited(memory, monkeypatch)

    def part(folder, stop_at=None, resume=False):
        def progress(now):
            memory[0] = 2 if now.step >= 2 else 4
            if now.step == stop_at:
                raise Stopped

        memory[0] = 2 if resume else 4
        return train("ddpm", TINY["ddpm"], cache, None, TINY_TRAINING, folder, resume=resume, progress=progress)

    whole = part(tmp_path / "whole")
    with pytest.raises(Stopped):
        part(tmp_path / "parts", stop_at=4)
    resumed = part(tmp_path / "parts", resume=True)
    assert resumed.notes == whole.notes == ["out of memory at step 2: batch 4 -> 2 x 2"]
    assert_same(resumed, whole)


def test_without_memory_for_one_slice_the_run_stops_and_says_what_to_do(tmp_path, cache, monkeypatch):
    sizes = limited([0], monkeypatch)
    with pytest.raises(TrainingFailed, match=r"one slice at a time.*smaller preset.*--resume"):
        run(tmp_path, cache)
    assert sizes == [4, 2, 1]
    assert load_state(tmp_path).step == 0
