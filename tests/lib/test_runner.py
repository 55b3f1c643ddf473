import threading

import pytest

from lib.errors import ServerBusy
from lib.runner import ModelRunner, choose_device, list_devices
from monailabel_app.errors import InvalidSettings


@pytest.fixture
def folders(tmp_path):
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(name)
    return [tmp_path / name for name in names]


@pytest.fixture
def loads():
    return []


@pytest.fixture
def runner(loads):
    def load(folder):
        loads.append(folder.name)
        return object()

    return ModelRunner(max_loaded=2, max_waiting=1, load=load)


def test_a_model_is_loaded_once(runner, loads, folders):
    assert runner.model(folders[0], "cpu") is runner.model(folders[0], "cpu")
    assert loads == ["a"]


def test_the_least_recently_used_model_makes_room(runner, loads, folders):
    a, b, c = folders
    for folder in (a, b, a, c, a, b):
        runner.model(folder, "cpu")
    assert loads == ["a", "b", "c", "b"]


def test_each_device_has_its_own_copy(runner, folders):
    assert runner.model(folders[0], "cpu") is not runner.model(folders[0], "cuda:0")


def test_a_changed_folder_is_loaded_again(runner, loads, folders):
    first = runner.model(folders[0], "cpu")
    (folders[0] / "model.safetensors").write_bytes(b"new weights")
    assert runner.model(folders[0], "cpu") is not first
    assert loads == ["a", "a"]


def test_forgotten_models_are_loaded_again(runner, loads, folders):
    runner.model(folders[0], "cpu")
    runner.forget()
    runner.model(folders[0], "cpu")
    assert loads == ["a", "a"]


def test_a_device_runs_one_job_at_a_time(runner):
    running, most = 0, 0
    lock = threading.Lock()
    runner = ModelRunner(max_waiting=100, load=object)

    def job():
        nonlocal running, most
        with runner.device("cpu"):
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.002)
            with lock:
                running -= 1

    jobs = [threading.Thread(target=job) for _ in range(20)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert most == 1
    assert runner.waiting == 0


def test_two_devices_run_beside_each_other(runner):
    with runner.device("cuda:0"), runner.device("cpu"):
        assert runner.waiting == 0


def test_a_full_line_turns_the_next_away_and_recovers(runner):
    done = threading.Event()

    def wait_in_line():
        with runner.device("cpu"):
            done.set()

    with runner.device("cpu"):
        waiter = threading.Thread(target=wait_in_line)
        waiter.start()
        while runner.waiting == 0:
            pass
        with pytest.raises(ServerBusy, match="try again"), runner.device("cpu"):
            pass
    waiter.join()
    assert done.is_set()
    with runner.device("cpu"):
        pass


def test_a_device_is_free_again_after_a_failure(runner):
    with pytest.raises(ValueError, match="boom"), runner.device("cpu"):
        raise ValueError("boom")
    with runner.device("cpu"):
        assert runner.waiting == 0


def test_devices_are_chosen_by_name():
    assert choose_device("cpu") == "cpu"
    assert (
        choose_device(None)
        == choose_device("auto")
        == choose_device("cuda")
        == choose_device(["auto", "cpu"])
        == list_devices()[0]
    )
    with pytest.raises(InvalidSettings, match="cpu"):
        choose_device("cuda:99")
