"""A file is replaced as a whole or not at all, whoever writes it, and nothing is left beside it."""

import errno
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from monailabel_app import files
from monailabel_app.access.tokens import TokenStore
from monailabel_app.client import _whole
from monailabel_app.files import remove_abandoned, replace_file, replacing
from monailabel_app.pipelines import launcher
from monailabel_app.pipelines.cohort.tables import write_tables
from monailabel_app.pipelines.evaluation.corruption_suite import _Kept
from monailabel_app.pipelines.quality_figures import keep
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.forgotten import ForgottenList
from monailabel_app.training.run_folders import latest_run, note_latest_run
from tests.monailabel_app.training.test_manifest import manifest
from tests.mortal import kill_before_call

CALLS = ("replace", "unlink", "fsync", "open")


def save_cache(folder, value=0):
    image = torch.full((1, 4, 4, 4), value, dtype=torch.uint8)
    TrainingCache(image, image > 0, ("a",), "t1").save(folder / "t1_train.safetensors")


def use_client(folder, value=0):
    with _whole(folder / "map.nii.gz") as partial:
        partial.write_bytes(b"map")


WRITERS = {
    "the run a trainer works on": lambda folder: note_latest_run(folder, "ddpm", folder / "runs" / "m" / "one"),
    "a training manifest": lambda folder: manifest().write(folder),
    "patients to be forgotten": lambda folder: ForgottenList(folder).add("patient"),
    "a training cache": save_cache,
    "the table of a cohort": lambda folder: write_tables(folder, [], "title"),
    "figures of a corruption suite": lambda folder: _Kept(folder / "kept.json").add("key", {}),
    "measured figures": lambda folder: keep(folder / "figures.json", {}),
    "the command": launcher.install,
    "tokens": lambda folder: TokenStore(folder / "tokens.json").create("one", "reader"),
    "a download": use_client,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path, monkeypatch, writer):
    (tmp_path / "bin").mkdir()
    (tmp_path / "runs").mkdir()
    refused = []

    def full(source, target):
        refused.append(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with suppress(OSError):
        WRITERS[writer](tmp_path)
    assert refused
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in left if not name.endswith((".key", ".lock"))}


def note_run(folder, value):
    note_latest_run(folder, "ddpm", folder / "runs" / "m" / str(value))


@pytest.mark.parametrize("write", [save_cache, note_run, use_client])
def test_two_that_write_the_same_file_at_once_do_not_meet(tmp_path, monkeypatch, write):
    """Each stops before its rename until the other has written, too: a shared name would be renamed away."""
    for name in ("1", "2"):
        (tmp_path / "runs" / "m" / name).mkdir(parents=True)
    together, renamed, failed = threading.Barrier(2), os.replace, []

    def replace(source, target):
        together.wait(120)
        return renamed(source, target)

    monkeypatch.setattr(os, "replace", replace)

    def run(number):
        try:
            write(tmp_path, number)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    if write is save_cache:
        assert TrainingCache.load(tmp_path / "t1_train.safetensors").ids == ("a",)
    elif write is note_run:
        assert latest_run(tmp_path, "ddpm").name in {"1", "2"}


def test_what_lasts_is_on_the_disk_before_its_name_and_the_name_before_it_returns(tmp_path, monkeypatch):
    done = []
    sync, rename, flush = os.fsync, os.replace, files.flush
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("content"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), rename(a, b))[1])
    monkeypatch.setattr(files, "flush", lambda folder: (done.append("folder"), flush(folder))[1])
    replace_file(tmp_path / "file", "new", lasting=True)
    assert done[:3] == ["content", "name", "folder"]
    done.clear()
    replace_file(tmp_path / "file", "newer")
    assert done == ["name"]


def test_an_error_while_it_is_written_keeps_the_former_content(tmp_path):
    replace_file(tmp_path / "file", b"former")

    def fail():
        with replacing(tmp_path / "file", ending=".nii.gz") as partial:
            assert partial.name.endswith(".nii.gz")
            partial.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="middle"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"former"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_who_may_read_it(tmp_path, private, mode):
    before = os.umask(0o022)
    try:
        (tmp_path / "file").touch(0o666)
        replace_file(tmp_path / "file", "text", private=private)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_killed_at_any_call_the_old_or_the_new_content_is_there(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    context, seen = multiprocessing.get_context("fork"), set()
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_text("old" * 1000)
        child = context.Process(target=_mortal, args=(folder / "file", number))
        child.start()
        child.join(300)
        seen.add((folder / "file").read_text())
        left = [path for path in folder.iterdir() if path.name != "file"]
        assert remove_abandoned(folder) == 0
        assert remove_abandoned(folder, 0) == len(left) <= 1
        if child.exitcode == 0:
            assert not left
            assert number >= len(CALLS)
            assert seen == {"old" * 1000, "new" * 1000}
            return
        assert child.exitcode == -signal.SIGKILL
    raise AssertionError("it never ends")


def _mortal(file, left):
    kill_before_call(left, CALLS)
    replace_file(file, "new" * 1000, lasting=True)
    os._exit(0)


def test_what_a_killed_process_left_is_removed_only_when_it_is_old(tmp_path):
    for name in (".writing-0123456789abcdef.partial", ".0123.partial", ".writing-01.nii.gz"):
        (tmp_path / name).write_text("half")
    (tmp_path / "whole.json").write_text("whole")
    assert remove_abandoned(tmp_path) == 0
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert remove_abandoned(Path(tmp_path)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]
