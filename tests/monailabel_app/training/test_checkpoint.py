"""Checkpoints: complete, written by rename, and when damaged replaced by the one before or refused."""

import os
import resource
from pathlib import Path

import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.training import checkpoint
from monailabel_app.training.checkpoint import LAST, PREVIOUS, TrainingState, has_state, load_state, save_state


def state(step=3) -> TrainingState:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, betas=(0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainingState(
        model={name: value.detach() for name, value in layer.state_dict().items()},
        ema={name: value.detach() + 1 for name, value in layer.state_dict().items()},
        optimizer=optimizer.state_dict(),
        generator=torch.Generator().manual_seed(11).get_state(),
        step=step,
        seconds=1.5,
        history=[{"step": 2, "loss": 0.25}],
        settings={"method": "ddpm", "config": {"levels": [0.7]}},
    )


def test_everything_comes_back(tmp_path):
    made = state()
    save_state(tmp_path, made)
    back = load_state(tmp_path)
    assert (back.step, back.seconds, back.history, back.settings) == (3, 1.5, made.history, made.settings)
    assert torch.equal(back.generator, made.generator)
    for name, value in made.model.items():
        assert torch.equal(back.model[name], value)
        assert torch.equal(back.ema[name], value + 1)
    for index, slots in made.optimizer["state"].items():
        for slot, value in slots.items():
            assert torch.equal(back.optimizer["state"][index][slot], torch.as_tensor(value))
    layer = torch.nn.Linear(3, 2)
    fresh = torch.optim.AdamW(layer.parameters(), lr=9.0)
    fresh.load_state_dict(back.optimizer)
    assert fresh.param_groups[0]["lr"] == 1e-3
    assert tuple(fresh.param_groups[0]["betas"]) == (0.9, 0.99)


def test_a_half_written_file_beside_it_does_not_matter(tmp_path):
    save_state(tmp_path, state())
    (tmp_path / (LAST + ".partial")).write_bytes(b"\x00" * 100)
    assert load_state(tmp_path).step == 3
    save_state(tmp_path, state(step=4))
    assert load_state(tmp_path).step == 4


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_cut_checkpoint_is_refused_by_name(tmp_path, keep):
    path = save_state(tmp_path, state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingFailed, match=r"last\.safetensors"):
        load_state(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingFailed, match="found none"):
        load_state(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_cut_checkpoint_is_replaced_by_the_one_before_with_a_warning(tmp_path, keep, caplog):
    save_state(tmp_path, state(step=3))
    path = save_state(tmp_path, state(step=4))
    path.write_bytes(path.read_bytes()[:keep])
    assert load_state(tmp_path).step == 3
    assert "damaged" in caplog.text
    assert "checkpoint before the last, of step 3" in caplog.text


def test_zeros_in_the_middle_of_a_checkpoint_are_noticed(tmp_path):
    path = save_state(tmp_path, state())
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    assert any(content[first : first + 16])
    path.write_bytes(content[:first] + bytes(16) + content[first + 16 :])
    with pytest.raises(TrainingFailed, match="damaged"):
        load_state(tmp_path)


def test_two_checkpoints_are_kept_and_a_new_run_begins_with_one(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    (tmp_path / LAST).unlink()
    assert has_state(tmp_path)
    assert load_state(tmp_path).step == 2
    save_state(tmp_path, state(7), keep_previous=False)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("links", [True, False], ids=["hard_links", "no_hard_links"])
@pytest.mark.parametrize("last_call", range(6))
def test_killed_anywhere_while_saving_leaves_a_whole_checkpoint(tmp_path, monkeypatch, last_call, links):
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    calls = []

    def counted(real):
        def call(*arguments, **options):
            if len(calls) == last_call:
                raise _Killed
            calls.append(1)
            return real(*arguments, **options)

        return call

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", counted(os.link if links else no_links))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
    try:
        save_state(tmp_path, state(3))
    except _Killed:
        killed = True
    else:
        killed = False
    monkeypatch.undo()
    assert killed == (len(calls) == last_call)
    assert load_state(tmp_path).step in ((2, 3) if killed else (3,))
    save_state(tmp_path, state(4))
    assert load_state(tmp_path).step == 4


def test_file_and_folder_are_on_the_disk_before_saving_returns(tmp_path, monkeypatch):
    synced, renamed = [], []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else "?")
        return real_sync(handle)

    def replace(self, target):
        renamed.append((Path(target).name, len(synced)))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    save_state(tmp_path, state())
    if "?" not in synced:
        assert synced == [str(tmp_path / (LAST + ".partial")), str(tmp_path)]
    # the file's content before it gets its name, the folder after
    assert renamed == [(LAST, 1)]
    assert len(synced) == 2


def test_a_file_that_must_not_grow_stops_with_a_clear_error_and_keeps_both_checkpoints(tmp_path):
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(TrainingFailed, match=r"checkpoint of step 3.*previous checkpoint is kept"):
            save_state(tmp_path, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert load_state(tmp_path).step == 2


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    made = state()
    made.generator = made.generator.flatten()
    path = save_state(tmp_path, made)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + header].decode()
    for name in ("recent", "averaged", "notes", "checksum"):
        assert f'\\"{name}\\"' in text
        text = text.replace(f'\\"{name}\\"', f'\\"_{name[1:]}\\"')
    path.write_bytes(content[:8] + text.encode() + content[8 + header :])
    back = load_state(tmp_path)
    assert (back.step, back.recent, back.averaged, back.notes) == (3, [], None, [])
