"""Calibrating, rolling back and forgetting, killed at any call that changes a file: the old or the new, never none."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from monailabel_app.training.forgotten import ForgottenList
from monailabel_app.weights import site_calibrations as site
from monailabel_app.weights import versions
from monailabel_app.weights.listing import list_models
from monailabel_app.weights.model_folder import open_model_folder, seal, verify, write_config, write_weights
from tests.mortal import kill_before_call

CALLS = ("rename", "replace", "unlink", "link", "mkdir", "rmdir", "fsync", "utime", "open")


def make(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1", "value": value})
    write_weights(folder, {"w": torch.full((2,), value)})
    (folder / "calibration.json").write_text(f'{{"of": {value}}}')
    seal(folder)


def calibrate(root, text):
    model = root / "model_weights" / "m"
    staged = site.new_staging(model)
    for name in ("calibration.json", "calibration.safetensors"):
        (staged / name).write_text(text)
    return site.publish(model, staged, {"scans": 7}, use_it=True)


@pytest.fixture
def start(tmp_path):
    root = tmp_path / "start"
    make(root / "model_weights" / "m", 0.0)
    calibrate(root, "old")
    for value in (1.0, 2.0):
        staged = versions.new_staging(root, "n")
        make(staged, value)
        versions.publish(root, "n", staged, promote=True)
    ForgottenList(root).add("first")
    return root


@pytest.fixture
def killed_anywhere(start, tmp_path):
    """Calls ``change(root)`` in processes of copies that die at the first call that changes a file, the second, ..."""
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    context = multiprocessing.get_context("fork")

    def run(change, check):
        for number in range(1000):
            root = Path(shutil.copytree(start, tmp_path / f"killed{number}", symlinks=True))
            child = context.Process(target=_mortal, args=(change, root, number))
            child.start()
            child.join(300)
            check(root)
            shutil.rmtree(root)
            if child.exitcode == 0:
                return number
            assert child.exitcode == -signal.SIGKILL
        raise AssertionError("it never ends")

    return run


def _mortal(change, root, left):
    kill_before_call(left, CALLS)
    change(root)
    os._exit(0)


def test_a_calibration_killed_anywhere_leaves_the_old_or_the_new_in_use_whole(killed_anywhere):
    seen = set()

    def check(root):
        active = site.active(root / "model_weights" / "m")
        seen.add((active.folder / "calibration.json").read_text())
        verify(active.folder, site.FILES)
        assert {"m", "n"} <= set(list_models(root))
        again = calibrate(root, "again")
        assert site.active(root / "model_weights" / "m").id == again.id

    assert killed_anywhere(lambda root: calibrate(root, "new"), check) > 5
    assert seen == {"old", "new"}


def test_going_back_to_another_calibration_killed_anywhere_keeps_one_in_use(killed_anywhere):
    model = Path("model_weights") / "m"
    seen = set()

    def check(root):
        active = site.active(root / model)
        seen.add(active is None)
        site.use(root / model, "shipped")
        assert site.active(root / model) is None

    assert killed_anywhere(lambda root: site.use(root / model, "shipped"), check) > 1
    assert seen == {True, False}


@pytest.mark.parametrize("action", ["rollback", "promote"])
def test_a_rollback_killed_anywhere_leaves_one_of_the_two_versions_serving_whole(killed_anywhere, action):
    seen = set()

    def change(root):
        versions.rollback(root, "n") if action == "rollback" else versions.promote(root, "n", "0001")

    def check(root):
        seen.add(open_model_folder(versions.current(root, "n")).config["value"])
        versions.promote(root, "n", "0002")
        assert open_model_folder(versions.current(root, "n")).config["value"] == 2.0

    assert killed_anywhere(change, check) > 2
    assert seen == {1.0, 2.0}


def test_whom_no_training_may_use_is_never_forgotten_by_a_kill(killed_anywhere):
    seen = set()

    def check(root):
        held = ForgottenList(root)
        assert "first" in held
        seen.add("second" in held)
        held.add("third")
        assert "third" in ForgottenList(root)

    assert killed_anywhere(lambda root: ForgottenList(root).add("second"), check) > 1
    assert seen == {True, False}
