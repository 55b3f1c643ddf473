"""Progress is whole, finite and honest about a run that has gone; curves never cost a training."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.training import monitor as module
from monailabel_app.training.healthy_loop import TrainProgress
from monailabel_app.training.monitor import PROGRESS, Monitor, read_progress

ROOT = Path(__file__).resolve().parents[3]
NOW = TrainProgress(
    step=40,
    share=0.4,
    loss=0.1,
    validation_loss=0.2,
    slices_per_second=12.5,
    seconds=30.0,
    steps=100,
    epoch=2,
    total_epochs=5,
    seconds_left=45.0,
    figures={"quality": 0.31, "healthy_fpr": 0.02},
    notes=("out of memory at step 3: batch 16 -> 2 x 8",),
    checkpoint=True,
)


def quiet(folder) -> Monitor:
    return Monitor(folder, tensorboard=False)


def script(folder: Path, body: str) -> subprocess.Popen:
    """A process of its own that watches a training in ``folder``."""
    code = f"""
import sys, time
from pathlib import Path
from monailabel_app.training.healthy_loop import TrainProgress
from monailabel_app.training.monitor import Monitor
folder, now = Path({str(folder)!r}), TrainProgress(4, 0.1, 0.5, None, 3.0, 2.0)
{body}
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_viewers_find_the_keys_they_read(tmp_path):
    quiet(tmp_path).training(NOW)
    seen = read_progress(tmp_path)
    assert seen["status"] == "training"
    assert (seen["epoch"], seen["total_epochs"], seen["best_metric"]) == (2, 5, 0.31)
    assert (seen["loss"], seen["validation_loss"], seen["images_per_second"]) == (0.1, 0.2, 12.5)
    assert (seen["quality"], seen["healthy_fpr"], seen["seconds_left"]) == (0.31, 0.02, 45.0)
    assert seen["notes"] == ["out of memory at step 3: batch 16 -> 2 x 8"]
    assert "total_time" not in seen
    assert not {"processes", "writer", "host"} & set(seen)


def test_nothing_is_known_of_a_run_that_has_not_begun(tmp_path):
    assert read_progress(tmp_path / "none") == {}
    (tmp_path / PROGRESS).write_text("{half")
    assert read_progress(tmp_path) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_written(tmp_path, bad):
    watched = quiet(tmp_path)
    watched.training(replace(NOW, loss=bad, validation_loss=bad, seconds_left=bad, figures={"quality": bad}))
    assert read_progress(tmp_path)["best_metric"] == 0.0
    assert "loss" not in read_progress(tmp_path)
    watched.finished({"promoted": True, "quality": bad, "details": {"rate": bad, "list": [1.0, bad]}})
    text = (tmp_path / PROGRESS).read_text()
    assert not {"NaN", "Infinity", "null"} & set(text.replace(",", " ").replace("]", " ").replace("}", " ").split())
    assert read_progress(tmp_path)["details"] == {"list": [1.0]}


def test_best_metric_is_a_share_whatever_comes(tmp_path):
    quiet(tmp_path).training(replace(NOW, figures={"quality": 1.7}))
    assert read_progress(tmp_path)["best_metric"] == 1.0


@pytest.mark.parametrize(("promoted", "status"), [(True, "published"), (False, "kept")])
def test_a_finished_run_has_a_total_time_and_a_full_bar(tmp_path, promoted, status):
    watched = quiet(tmp_path)
    watched.training(NOW)
    watched.finished({"promoted": promoted, "version": "0003", "quality": {"mean_ap": 0.5, "per_scan_ap": [0.5]}})
    seen = read_progress(tmp_path)
    assert (seen["status"], seen["version"], seen["best_metric"]) == (status, "0003", 0.5)
    assert seen["total_time"] == "0:00:00"
    assert seen["epoch"] == seen["total_epochs"] == 2


def test_a_failed_run_says_why_and_has_no_total_time(tmp_path):
    watched = quiet(tmp_path)
    watched.training(NOW)
    with pytest.raises(TrainingFailed), watched:
        raise TrainingFailed("expected a finite loss, got nan; lower the learning rate")
    seen = read_progress(tmp_path)
    assert (seen["status"], "finite loss" in seen["message"]) == ("failed", True)
    assert "total_time" not in seen
    assert "seconds_left" not in seen


def test_the_message_of_an_unforeseen_error_is_not_shown(tmp_path):
    with pytest.raises(FileNotFoundError), quiet(tmp_path):
        raise FileNotFoundError("/data/Jane_Doe/t1.nii.gz")
    assert "Jane" not in (tmp_path / PROGRESS).read_text()
    assert read_progress(tmp_path)["status"] == "failed"


def test_stages_name_the_status_and_count(tmp_path):
    watched = quiet(tmp_path)
    watched.stage("preparing", 3, 12)
    assert read_progress(tmp_path)["stage_done"] == 3
    watched.training(NOW)
    watched.stage("calibrating on held-out scans", 0, 5)
    seen = read_progress(tmp_path)
    assert (seen["status"], seen["stage"]) == ("calibrating", "calibrating on held-out scans")
    assert seen["loss"] == 0.1


def test_at_most_one_write_a_second(tmp_path, monkeypatch):
    clock, writes = [100.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    replaced = os.replace
    monkeypatch.setattr(module.os, "replace", lambda a, b: (writes.append(clock[0]), replaced(a, b)))
    watched = quiet(tmp_path)
    watched.training(NOW)
    before = len(writes)
    for step in range(41, 61):
        clock[0] += 0.25
        watched.training(replace(NOW, step=step))
    assert len(writes) - before == 5
    clock[0] += 0.1
    watched.training(replace(NOW, step=61))
    watched.close()
    assert read_progress(tmp_path)["step"] == 61


def test_a_reader_never_meets_half_a_file(tmp_path):
    watched, broken, done = quiet(tmp_path), [], threading.Event()

    def read():
        while not done.is_set():
            try:
                json.loads((tmp_path / PROGRESS).read_text())
            except ValueError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        watched.stage(f"preparing {'x' * (number % 50) * 40}", number, 300)
    done.set()
    reader.join()
    assert not broken
    assert list(tmp_path.glob("*.partial")) == []


def test_a_killed_run_is_stopped_and_can_be_gone_on_with(tmp_path):
    process = script(
        tmp_path, "Monitor(folder, tensorboard=False).training(now); print('up', flush=True); time.sleep(600)"
    )
    try:
        assert process.stdout.readline().strip() == b"up", process.stderr.read()
        assert read_progress(tmp_path)["status"] == "training"
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert read_progress(tmp_path)["status"] == "stopped", "dead but not collected"
    finally:
        process.kill()
        process.communicate()
    assert read_progress(tmp_path)["status"] == "stopped"
    assert read_progress(tmp_path)["loss"] == 0.5
    quiet(tmp_path)
    assert read_progress(tmp_path)["status"] == "preparing"
    assert read_progress(tmp_path)["loss"] == 0.5


def test_a_process_number_used_again_is_not_the_run(tmp_path):
    quiet(tmp_path).training(NOW)
    record = json.loads((tmp_path / PROGRESS).read_text())
    record["processes"][0][1] -= 1000
    (tmp_path / PROGRESS).write_text(json.dumps(record))
    assert read_progress(tmp_path)["status"] == "stopped"


def test_a_run_on_another_machine_is_believed_until_it_falls_silent(tmp_path):
    quiet(tmp_path).training(NOW)
    record = json.loads((tmp_path / PROGRESS).read_text()) | {"host": "elsewhere", "processes": [[1, 0.0]]}
    (tmp_path / PROGRESS).write_text(json.dumps(record))
    assert read_progress(tmp_path)["status"] == "training"
    (tmp_path / PROGRESS).write_text(json.dumps(record | {"updated": record["updated"] - 3600}))
    assert read_progress(tmp_path)["status"] == "stopped"


def test_the_starting_process_takes_over_from_the_training_one(tmp_path):
    parent = quiet(tmp_path)
    parent.stage("preparing", 1, 1)
    child = script(tmp_path, "with Monitor(folder, tensorboard=False) as watched: watched.training(now)")
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert read_progress(tmp_path)["status"] == "training", "the parent is still there"
    parent.stage("calibrating", 0, 5)
    seen = read_progress(tmp_path)
    assert (seen["status"], seen["loss"]) == ("calibrating", 0.5)


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Monitor(tmp_path) as watched:
        watched.training(NOW)
        watched.pictures(np.zeros((4, 4), np.uint8))
    assert list(tmp_path.iterdir()) == []


def curves(folder) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_curves_and_pictures_are_on_disk_after_closing(tmp_path):
    with Monitor(tmp_path) as watched:
        watched.training(NOW, learning_rate=4e-4)
        watched.pictures(np.full((6, 8, 3), 128, np.uint8))
        watched.training(replace(NOW, step=45, loss=float("nan"), checkpoint=False))
    found = curves(tmp_path)
    expected = {"loss/training": 0.1, "loss/validation": 0.2, "quality/average_precision": 0.31}
    expected |= {"quality/healthy_false_positive_rate": 0.02, "speed/images_per_second": 12.5, "learning_rate": 4e-4}
    for tag, value in expected.items():
        assert found.Scalars(tag)[0].value == pytest.approx(value)
        assert found.Scalars(tag)[0].step == 40
    assert len(found.Scalars("loss/training")) == 1, "a loss that is not a number has no point"
    assert len(found.Scalars("quality/average_precision")) == 1, "held-out figures are drawn when they are new"
    picture = found.Images("held-out scans")[0]
    assert (picture.height, picture.width, picture.step) == (6, 8, 40)


def test_a_resumed_run_continues_the_curves(tmp_path):
    for steps in ((10, 20, 30), (20, 30, 40)):
        with Monitor(tmp_path) as watched:
            for step in steps:
                watched.training(replace(NOW, step=step, loss=steps[0] + step))
    points = [(point.step, point.value) for point in curves(tmp_path).Scalars("loss/training")]
    assert points == [(10, 20), (20, 40), (30, 50), (40, 60)]


def test_a_full_disk_ends_the_curves_but_not_the_training(tmp_path):
    pytest.importorskip("resource", reason="file size limits are POSIX")
    body = """
import logging, resource
logging.basicConfig(level=logging.WARNING, format="LOG %(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with Monitor(folder) as watched:
    for step in range(100):
        watched.training(TrainProgress(step, 0.1, 0.5, None, 3.0, 2.0))
        watched.stage("evaluating" if step % 2 else "training")
    watched.finished({"promoted": False})
"""
    process = script(tmp_path, body)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert errors.count(b"LOG TensorBoard cannot be written") == 1, errors.decode()
    assert read_progress(tmp_path)["status"] == "kept"


def test_a_missing_tensorboard_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Monitor(tmp_path) as watched:
        watched.training(NOW)
        watched.training(NOW)
    assert [record.message for record in caplog.records] == [
        "TensorBoard cannot be written (ModuleNotFoundError); the training goes on without it"
    ]
    assert read_progress(tmp_path)["loss"] == 0.1


def test_progress_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    with quiet(tmp_path / "run") as watched:
        watched.training(NOW)
    assert len(caplog.records) == 1


def test_a_picture_of_floats_is_refused(tmp_path):
    with pytest.raises(InvalidSettings, match="uint8"):
        quiet(tmp_path).figure("sheet", np.zeros((4, 4)))
