"""The line of scorings is no longer than what was set, whoever asks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from lib.endpoints import tasks
from tests.lib.results_app import client_of, small_app


@pytest.mark.parametrize(("waiting", "status", "begun"), [(15, 200, ["sum"]), (16, 429, []), (40, 429, [])])
def test_who_asks_again_and_again_does_not_fill_the_line_of_scorings(tmp_path, monkeypatch, waiting, status, begun):
    client = client_of(small_app(tmp_path), monkeypatch)
    line = [{"status": "RUNNING"}, *[{"status": "SUBMITTED"}] * (waiting - 1), *[{"status": "DONE"}] * 50]
    started = []

    def run(kind, request, **options):
        started.append(request["method"])
        return {"id": "1"}, None

    monkeypatch.setattr(tasks, "tasks", lambda kind: line if kind == "scoring" else [])
    monkeypatch.setattr(tasks.AsyncTask, "run", run)
    monkeypatch.setattr(tasks, "app_instance", lambda: SimpleNamespace(scoring_methods=lambda: {"sum": None}))
    monkeypatch.setattr(tasks, "scoring_request", lambda name, params: {})
    answer = client.post("/scoring/", json={})
    assert answer.status_code == status, answer.text
    assert started == begun
    if status == 429:
        assert "many scorings wait already" in answer.json()["detail"]


def test_of_two_who_ask_at_once_for_the_last_place_one_gets_it(monkeypatch):
    line, both = [{"status": "SUBMITTED"}] * 15, threading.Barrier(2)

    def run(kind, request, **options):
        line.append({"status": "SUBMITTED"})
        return {"id": "1"}, None

    def counted(kind):
        length = len(line)
        # Where both may count before either has taken a place, they do.
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return line[:length]

    monkeypatch.setattr(tasks, "tasks", counted)
    monkeypatch.setattr(tasks.AsyncTask, "run", run)
    monkeypatch.setattr(tasks, "app_instance", lambda: SimpleNamespace(scoring_methods=lambda: {"sum": None}))
    monkeypatch.setattr(tasks, "scoring_request", lambda name, params: {})
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(tasks.run_all_scorings, {}, False, None) for _ in range(2)]
        errors = [one.exception(60) for one in asked]
    assert sorted(getattr(error, "status_code", 200) for error in errors) == [200, 429]
    assert len(line) == 16


def test_a_scoring_that_is_waited_for_does_not_make_others_wait_for_hours(monkeypatch):
    begun, leave = threading.Event(), threading.Event()

    def run(kind, request, **options):
        begun.set()
        leave.wait(120)
        return {"id": "1"}, None

    app = SimpleNamespace(scoring_methods=lambda: {"sum": None}, trainers=lambda: {"ddpm": None})
    monkeypatch.setattr(tasks, "tasks", lambda kind: [])
    monkeypatch.setattr(tasks.AsyncTask, "run", run)
    monkeypatch.setattr(tasks, "app_instance", lambda: app)
    monkeypatch.setattr(tasks, "scoring_request", lambda name, params: {})
    monkeypatch.setattr(tasks, "training_request", lambda name, params: {})
    monkeypatch.setattr(tasks, "_START_SECONDS", 0.1, raising=False)
    others = [
        (tasks.run_all_scorings, {}, False, None),
        (tasks.run_scoring, "sum", {}, False, None),
        (tasks.run_training, "ddpm", {}, False, False, None),
        (tasks.run_all_trainings, {}, False, None),
    ]
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(tasks.run_all_scorings, {}, True, None)
        try:
            assert begun.wait(120)
            errors = [pool.submit(*other).exception(30) for other in others]
        finally:
            leave.set()
    assert [getattr(error, "status_code", None) for error in errors] == [429] * len(others)
    assert "run_sync" in errors[0].detail
    assert first.result(30)["sum"]["result"] == {"id": "1"}
