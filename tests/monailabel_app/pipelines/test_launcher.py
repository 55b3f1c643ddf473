"""The monailabel command that set-up writes: arguments whole, the environment's own Python, dcmqi found."""

import os
import subprocess

import pytest

from monailabel_app.pipelines import launcher

# Stands in for the environment's interpreter: says what it was called with.
PYTHON = '#!/bin/sh\nprintf "%s\\n" "$0" "$PATH" "$@"\n'
STOCK = "#!/bin/bash\nexec python -m monailabel.main $*\n"


@pytest.fixture
def venv(tmp_path):
    folder = tmp_path / "my apps" / ".venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    launcher.launcher_path(folder).write_text(STOCK)
    return folder


def run(command, *arguments, cwd):
    done = subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_arguments_with_spaces_and_quotes_stay_whole(venv, tmp_path):
    command = launcher.install(venv)
    arguments = ["start_server", "--app", "/data/my app", "--conf", "note", 'it\'s "two  words"', "*"]
    assert run(command, *arguments, cwd=tmp_path)[2:] == ["-m", "monailabel.main", *arguments]


def test_the_environments_own_python_runs_from_any_folder_and_through_a_link(venv, tmp_path):
    command = launcher.install(venv)
    link = tmp_path / "elsewhere"
    link.symlink_to(command)
    for path in (command, link):
        python, search_path, *_ = run(path, cwd="/")
        assert python == str(venv / "bin" / "python")
        assert search_path.split(os.pathsep)[0] == str(venv / "bin")


def test_the_wheels_own_command_is_not_taken_for_sound(venv):
    assert not launcher.is_sound(venv)
    launcher.install(venv)
    assert launcher.is_sound(venv)


def test_a_command_that_may_not_be_executed_is_not_sound(venv):
    launcher.install(venv).chmod(0o644)
    assert not launcher.is_sound(venv)


def test_installing_twice_leaves_one_file_and_no_remains(venv):
    launcher.install(venv)
    launcher.install(venv)
    assert sorted(path.name for path in (venv / "bin").iterdir()) == ["monailabel", "python"]


def test_a_folder_that_is_no_environment_is_an_error(tmp_path):
    with pytest.raises(OSError, match="monailabel"):
        launcher.install(tmp_path / "nothing here")
