"""Work in processes that may die: the others go on, the guilty one is found, and nobody survives the parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from monailabel_app.pipelines.workers import WorkerDied, map_in_processes

ROOT = Path(__file__).resolve().parents[3]


def double(value):
    if value == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if value == "raise":
        raise ValueError("as it should")
    return 2 * value


def die_the_first_time(path):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def process(_):
    return os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_item_gets_its_result(workers):
    assert sorted(map_in_processes(double, [5, 7, 1, 2], workers)) == [(0, 10), (1, 14), (2, 2), (3, 4)]
    assert list(map_in_processes(double, [], workers)) == []


def test_the_work_is_done_elsewhere_unless_there_are_no_workers():
    assert dict(map_in_processes(process, [0], 0))[0] == os.getpid()
    assert dict(map_in_processes(process, [0], 1))[0] != os.getpid()


def test_items_whose_process_dies_are_told_and_the_others_done():
    found = dict(map_in_processes(double, [1, "die", 3, 4, "die", 6], 2))
    assert {i: v for i, v in found.items() if not isinstance(v, WorkerDied)} == {0: 2, 2: 6, 3: 8, 5: 12}
    assert isinstance(found[1], WorkerDied)
    assert isinstance(found[4], WorkerDied)


def test_an_item_that_dies_beside_others_gets_a_second_chance_alone(tmp_path):
    assert dict(map_in_processes(die_the_first_time, [tmp_path / "tried"], 1)) == {0: "second time"}


def test_an_error_of_the_work_is_raised_here():
    with pytest.raises(ValueError, match="as it should"):
        list(map_in_processes(double, ["raise"], 1))


def test_the_program_is_not_imported_again_and_its_processes_end_with_it(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import pathlib, sys
            if __name__ != "__main__":
                pathlib.Path(sys.argv[1], "imported").touch()
            else:
                import tests.monailabel_app.pipelines.test_workers as here
                from monailabel_app.pipelines.workers import map_in_processes
                list(map_in_processes(here.tell_and_wait, [sys.argv[1]], 1))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    try:
        told = wait_for(lambda: (tmp_path / "worker").is_file() and (tmp_path / "worker").read_text())
        worker = int(told)
        assert alive(worker)
    finally:
        program.kill()
        program.wait()
    wait_for(lambda: not alive(worker))
    assert not (tmp_path / "imported").exists()


def tell_and_wait(folder):
    partial = Path(folder, "partial")
    partial.write_text(str(os.getpid()))
    partial.rename(Path(folder, "worker"))
    time.sleep(600)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=300):
    """Generous, since it only ends a hopeless wait: a busy machine takes its time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.1)
    return value
