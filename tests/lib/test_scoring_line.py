"""The line of scorings is no longer than what was set, whoever asks."""

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
