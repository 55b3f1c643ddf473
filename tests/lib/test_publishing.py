"""A running server uses what is published, rolled back or removed meanwhile, and never a mixture."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from monailabel_app.weights.versions import promote, remove, remove_model, rollback
from tests.lib.conftest import MODEL
from tests.lib.published import publish_model, write_model
from tests.server_fixture import copy_studies, make_app, running_server


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = make_app(tmp_path_factory.mktemp("app"), {})
    write_model(folder / "model_weights" / "one")
    return folder


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def running(app, hold, tmp_path_factory, studies_dir):
    """A server that offers all models, of which ``one`` is there when it starts."""
    studies = copy_studies(studies_dir, tmp_path_factory.mktemp("studies") / "studies")
    env = {"FAKE_HOLD": str(hold)}
    with running_server(studies, app=app, conf={"models": "all"}, env=env, fake_pipeline=True) as server:
        yield server


def used(server, model):
    """The folder that the analysis was made with (a version, for a published model)."""
    answer = server.infer(model, params={"image": "ixi_healthy", "output": "json"})
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]["id"]


def test_a_published_version_serves_the_next_request_and_a_rollback_the_one_after(running, app):
    assert used(running, "one") == "one"
    publish_model(app, "one", weights=b"first")
    assert used(running, "one") == "0001"
    publish_model(app, "one", weights=b"second")
    assert used(running, "one") == "0002"
    rollback(app, "one")
    assert used(running, "one") == "0001"
    publish_model(app, "one", weights=b"third", promote=False)
    assert used(running, "one") == "0001"
    promote(app, "one", "3")
    assert used(running, "one") == "0003"
    promote(app, "one", "shipped")
    assert used(running, "one") == "one"


def test_a_newly_trained_name_is_offered_and_a_removed_one_is_gone(running, app):
    assert "fresh" not in running.get("/info/").json()["models"]
    assert running.infer("fresh", params={"image": "ixi_healthy"}).status_code == 404
    publish_model(app, "fresh", MODEL.replace("t1", "flair"))
    models = running.get("/info/").json()["models"]
    assert "FLAIR" in models["fresh"]["description"]
    assert used(running, "fresh") == "0001"
    remove_model(app, "fresh")
    assert "fresh" not in running.get("/info/").json()["models"]
    refused = running.infer("fresh", params={"image": "ixi_healthy"})
    assert refused.status_code == 404
    assert "available: one" in refused.json()["detail"]


def test_a_running_request_keeps_its_model_while_another_is_published_and_its_own_removed(running, app, hold):
    publish_model(app, "kept", weights=b"first")
    answers = []
    with _held(hold, lambda: answers.append(used(running, "kept"))):
        publish_model(app, "kept", weights=b"second")
        remove(app, "kept", "1")
        assert "kept" in running.get("/info/").json()["models"]
        assert not answers
    assert answers == ["0001"]
    assert used(running, "kept") == "0002"


def test_a_batch_ends_with_the_version_it_began_with(running, app, hold):
    publish_model(app, "batch", weights=b"first")
    answers = []

    def ask():
        answers.append(requests.post(f"{running.url}/batch/infer/batch?run_sync=true", json={}, timeout=120))

    with _held(hold, ask):
        publish_model(app, "batch", weights=b"second")
        assert not answers
    assert answers[0].status_code == 200, answers[0].text
    results = answers[0].json()
    assert len(results) > 1
    assert {result["params"]["model"]["id"] for result in results.values()} == {"0001"}
    assert used(running, "batch") == "0002"


@contextmanager
def _held(hold, ask):
    """Runs ``ask`` beside the body, its analysis begun before the body and ended after it."""
    busy = Path(f"{hold}.busy")
    busy.unlink(missing_ok=True)
    hold.touch()
    job = threading.Thread(target=ask)
    try:
        job.start()
        deadline = time.monotonic() + 120
        while not busy.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert busy.exists()
        yield
    finally:
        hold.unlink()
        job.join(240)
