"""MONAI Label's background tasks as jobs: the tables are its own, the processes behind them are stand-ins."""

import threading
from collections import deque
from types import SimpleNamespace

import pytest
from monailabel.config import settings
from monailabel.utils.async_tasks import utils

from lib import background
from lib.errors import NotAllowed, UnknownJob


class Progress:
    def __init__(self, **record):
        self.record = record

    def read(self):
        return self.record


def app(train=None, scoring=None, batch=None):
    return SimpleNamespace(
        trainers=lambda: {"ddpm": SimpleNamespace(stats=lambda: train or {})},
        scoring_methods=lambda: {"anomaly_scores": SimpleNamespace(progress=Progress(**(scoring or {})))},
        _batch_infer=SimpleNamespace(progress=Progress(**(batch or {}))),
    )


@pytest.fixture
def table(monkeypatch):
    """MONAI Label's tables, empty; call it to add a task."""
    tasks, processes, executors = {}, {}, {}
    monkeypatch.setattr(utils, "background_tasks", tasks)
    monkeypatch.setattr(utils, "background_processes", processes)
    monkeypatch.setattr(utils, "background_executors", executors)
    monkeypatch.setattr(background, "_highest", {})

    def add(kind, status, number=1, **more):
        task = {"id": f"{kind}-{number}", "status": status, "start_ts": "2026-03-04 05:06:07", **more}
        task.setdefault("request", {"model": "ddpm"})
        tasks.setdefault(kind, []).append(task)
        if status == "RUNNING":
            processes.setdefault(kind, {})[task["id"]] = SimpleNamespace(pid=1)
        return task

    return add


def test_a_running_training_has_its_stage_and_a_share_of_the_whole(table):
    table("train", "RUNNING", request={"model": "ddpm", "epochs": 5, "gpus": "all", "images": ["a", "b"]})
    stats = {"status": "training", "stage": "training", "share": 0.5, "loss": 0.1}
    (job,) = background.listing(app(train=stats))
    assert (job["kind"], job["model"], job["state"], job["position"]) == ("train", "ddpm", "running", 0)
    assert job["stage"] == "training"
    assert 0.15 < job["progress"] < 0.8
    assert job["params"] == {"epochs": 5}
    assert job["finished"] is None
    assert job["seconds"] > 0


def test_the_parts_of_a_training_follow_one_another(table):
    table("train", "RUNNING")
    told = [
        {"status": "preparing", "stage_done": 0, "stage_total": 4},
        {"status": "preparing", "stage_done": 4, "stage_total": 4},
        {"status": "training", "share": 0.0},
        {"status": "training", "share": 1.0},
        {"status": "calibrating", "stage_done": 2, "stage_total": 4},
        {"status": "evaluating", "stage_done": 1, "stage_total": 2},
    ]
    shares = [background.listing(app(train=stats))[0]["progress"] for stats in told]
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares) - 1
    # A stage that begins anew does not take the bar back.
    again = background.listing(app(train={"status": "preparing", "stage_done": 0, "stage_total": 4}))[0]
    assert again["progress"] == shares[-1]
    assert shares[0] == 0
    assert shares[-1] < 1


def test_a_running_scoring_tells_its_steps_and_when_it_began(table):
    table("scoring", "RUNNING", request={"method": "anomaly_scores", "limit": 7})
    record = {"status": "running", "done": 3, "total": 12, "started": 1_800_000_000}
    (job,) = background.listing(app(scoring=record))
    assert (job["model"], job["progress"], job["params"]) == (
        "anomaly_scores",
        0.25,
        {"method": "anomaly_scores", "limit": 7},
    )
    assert job["started"].startswith("2027-01-15T08:00:00")


def test_the_progress_of_a_run_before_is_not_taken_for_this_one(table):
    table("batch_infer", "RUNNING")
    (job,) = background.listing(app(batch={"status": "done", "done": 12, "total": 12, "started": 5}))
    assert (job["stage"], job["progress"]) == ("starting", None)


def test_waiting_ones_have_their_place_and_ended_ones_their_times(table):
    table("train", "DONE", 1, end_ts="2026-03-04 05:08:07")
    table("train", "RUNNING", 2)
    table("train", "SUBMITTED", 3)
    table("train", "SUBMITTED", 4)
    listed = {job["id"]: job for job in background.listing(app())}
    assert [listed[f"train-{n}"]["position"] for n in (1, 2, 3, 4)] == [None, 0, 1, 2]
    done = listed["train-1"]
    assert (done["state"], done["progress"], done["seconds"]) == ("done", 1.0, 120.0)
    assert listed["train-3"]["seconds"] is None


def test_a_failed_one_tells_its_error_and_not_the_lines_before(table):
    details = deque(["Traceback (most recent call last):", "  File x", "monailabel_app.errors.TrainingFailed: too few"])
    table("train", "ERROR", details=details, end_ts="2026-03-04 05:08:07")
    table("scoring", "ERROR", details=deque(["epoch 3 of 5"]))
    errors = {job["kind"]: job["error"] for job in background.listing(app())}
    assert errors["train"] == "too few"
    assert "log" in errors["scoring"]


def test_the_running_one_is_stopped_in_its_own_way(table, monkeypatch):
    stopped = []
    monkeypatch.setattr(background.AsyncTask, "stop", stopped.append)
    table("scoring", "RUNNING", 1)
    table("scoring", "DONE", 2)
    background.cancel("scoring-1")
    background.cancel("scoring-2")
    assert stopped == ["scoring"]
    with pytest.raises(UnknownJob):
        background.cancel("other")


def test_a_waiting_one_is_taken_out_of_the_line_and_never_begins(table, monkeypatch):
    goes_on, began = threading.Event(), []

    def work(task, method, callback=None):
        began.append(task["id"])
        goes_on.wait(20)
        task["status"] = "DONE"

    monkeypatch.setattr(utils, "_task_func", work)
    background.prepare()
    first, second, third = (utils.run_background_task({"model": "ddpm"}, "train") for _ in range(3))
    background.cancel(second["id"])
    assert second["status"] == "STOPPED"
    state = {job["id"]: job["state"] for job in background.listing(app())}
    assert state[second["id"]] == "cancelled"
    goes_on.set()
    utils.background_executors["train"].shutdown(wait=True)
    assert began == [first["id"], third["id"]]
    assert second["status"] == "STOPPED"


def test_one_that_is_just_beginning_cannot_be_taken_out(table):
    table("train", "SUBMITTED")
    with pytest.raises(NotAllowed, match="just being started"):
        background.cancel("train-1")


def test_stopping_asks_for_the_same_role_as_monai_label():
    assert background.role_to_stop("train") == background.role_to_stop("batch_infer")
    assert background.role_to_stop("train") == settings.MONAI_LABEL_AUTH_ROLE_ADMIN
    assert background.role_to_stop("scoring") == settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR
