"""What an evaluation keeps for a while is its own: another one on the same cache neither uses nor removes it."""

import subprocess
import sys

import numpy as np
import pytest

from monailabel_app.pipelines.evaluation.own_folder import claim, release, remove_abandoned
from monailabel_app.pipelines.evaluation.store import keep_in

CLAIM = "import sys; from pathlib import Path; from monailabel_app.pipelines.evaluation.own_folder import claim\n"
CLAIM += "print(claim(Path(sys.argv[1]), 'a' * 24), flush=True); sys.stdin.read()"


def test_two_evaluations_of_the_same_do_not_share_a_folder(tmp_path):
    one, other = claim(tmp_path, "a"), claim(tmp_path, "a")
    for folder in (one, other):
        keep_in(folder)("map", lambda: np.arange(3.0))
    release(one)
    release(one)
    assert not one.exists()
    assert (other / "map.npy").is_file()
    release(other)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of files that end with a process")
def test_what_a_killed_evaluation_left_is_removed_and_a_running_one_keeps_its_own(tmp_path):
    running = subprocess.Popen([sys.executable, "-c", CLAIM, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        folder = tmp_path / running.stdout.readline().decode().strip().split("/")[-1]
        assert folder.is_dir()
        mine = claim(tmp_path, "a" * 24)
        assert remove_abandoned(tmp_path) == 0
        assert folder.is_dir()
    finally:
        running.kill()
        running.communicate()
    (tmp_path / ("0" * 24)).mkdir()
    (tmp_path / "something else").mkdir()
    assert remove_abandoned(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "something else"])
    release(mine)
