"""Publishing, adopting and removing models, killed at any line: what serves is whole, and the folder is usable."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

from monailabel_app.weights.model_folder import open_model_folder
from monailabel_app.weights.versions import publish, remove, rollback, versions
from tests.monailabel_app.weights.test_versions import NAME, publish_value, served, write_model

WATCHED = {"versions.py", "durable.py", "files.py"}


def _trace(change, before_line):
    """Run ``change``, and before each of its lines that may change files ``before_line`` with its number, from 1."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if Path(frame.f_code.co_filename).name not in WATCHED:
            return None
        if event == "line":
            seen += 1
            before_line(seen)
        return trace

    sys.settrace(trace)
    change()
    sys.settrace(None)


def _die_at(line_number, change):
    """Run ``change`` in this process and end it, as SIGKILL would, before the n-th line that changes files."""
    _trace(change, lambda line: os._exit(9) if line == line_number else None)
    os._exit(0)


def _tell_lines(root, change, told):
    """Run ``change`` and tell how many lines it has, and before which the disk is not as before the last one."""
    lines, changed, last = 0, [], None

    def look(line):
        nonlocal lines, last
        now = {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}
        if now != last:
            changed.append(line)
        lines, last = line, now

    _trace(change, look)
    told.send((lines, changed))
    told.close()
    os._exit(0)


@pytest.fixture
def kill_at_every_line(tmp_path, monkeypatch):
    """Calls ``change(root)`` on copies of a folder, killed at its first line, its second, ...; ``check(root)`` each.

    Of lines between which nothing on the disk changes the first stands for all: a kill at any of them leaves the same.
    Returns how many lines there are.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # Against power cuts, not kills; and slow.

    def run(start, change, check):
        told, telling = context.Pipe(duplex=False)
        root = Path(shutil.copytree(start, tmp_path / "whole"))
        child = context.Process(target=_tell_lines, args=(root, lambda: change(root), telling))
        child.start()
        telling.close()
        lines, changed = told.recv()
        child.join(300)
        assert len(changed) > 2
        for line in changed:
            copy = Path(shutil.copytree(start, tmp_path / f"killed {line}"))
            child = context.Process(target=_die_at, args=(line, lambda copy=copy: change(copy)))
            child.start()
            child.join(300)
            assert child.exitcode == 9
            check(copy)
            shutil.rmtree(copy)
        check(root)
        return lines

    return run


def test_a_publish_killed_at_any_line_leaves_the_old_or_the_new_model_serving_whole(tmp_path, kill_at_every_line):
    start, seen = tmp_path / "start", []
    publish_value(start, 1.0)
    write_model(start / "staged", 2.0)

    def check(root):
        seen.append(served(root))
        publish_value(root, 3.0)
        assert served(root) == 3.0
        rollback(root, NAME)
        assert served(root) == seen[-1]

    killed = kill_at_every_line(start, lambda root: publish(root, NAME, root / "staged", promote=True), check)
    assert killed > 50
    assert seen == sorted(seen)
    assert set(seen) == {1.0, 2.0}


def test_an_adoption_killed_at_any_line_goes_on_serving_and_keeps_one_copy(tmp_path, kill_at_every_line):
    start, seen = tmp_path / "start", []
    write_model(start / "model" / NAME, 5.0)
    write_model(start / "model_weights" / NAME, -1.0)

    def check(root):
        seen.append(served(root))
        publish_value(root, 7.0)
        assert [open_model_folder(v.folder).config["value"] for v in versions(root, NAME)] == [5.0, 7.0]
        assert not (root / "model" / NAME / "config.yaml").exists()

    killed = kill_at_every_line(start, lambda root: rollback(root, NAME), check)
    assert killed > 50
    assert set(seen) == {5.0, -1.0}
    assert seen == sorted(seen, reverse=True)


def test_a_removal_killed_at_any_line_leaves_the_serving_model_and_a_usable_folder(tmp_path, kill_at_every_line):
    start = tmp_path / "start"
    publish_value(start, 1.0)
    publish_value(start, 2.0)

    def check(root):
        assert served(root) == 2.0
        assert publish_value(root, 3.0).version == "0003"
        left = [v.version for v in versions(root, NAME)]
        assert left in (["0001", "0002", "0003"], ["0002", "0003"])

    assert kill_at_every_line(start, lambda root: remove(root, NAME, "1"), check) > 20
