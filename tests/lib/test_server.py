"""How the server behaves as a whole: it starts offline, stays responsive, and runs one job at a time."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import FAKE_PIPELINE, copy_studies, make_app, running_server


def test_info_is_what_the_viewers_need(server):
    info = server.get("/info/").json()
    assert info["labels"] == ["anomaly"]
    assert list(info["models"]) == ["one", "two", "one_bands", "two_bands"]
    model = info["models"]["one"]
    assert model["type"] == "segmentation"
    assert model["dimension"] == 3
    assert model["labels"] == {"anomaly": 1}
    assert "T1" in model["description"]
    assert "Research use only" in model["description"]
    assert all(isinstance(choice, str) for choices in model["config"].values() for choice in choices)
    assert model["config"]["score"] == ["l1", "ssim_ensemble"]
    assert set(info["strategies"]) == {"random", "first", "prototypical", "most_anomalous", "borderline"}
    assert info["trainers"] == {}


def under_way(server):
    return server.get("/anomaly/jobs?state=queued,running").json()["jobs"]


def test_one_job_at_a_time_and_everybody_else_is_answered(server, hold_file):
    """While a job is held up, the server answers other requests, and a second job waits for the first."""
    hold_file.touch()
    answers = {}

    def infer(name):
        answers[name] = server.infer(name, params={"image": "ixi_healthy", "output": "json"})

    jobs = [threading.Thread(target=infer, args=(name,)) for name in ("one", "two")]
    try:
        jobs[0].start()
        jobs[1].start()
        deadline = time.monotonic() + 120
        while sorted(job["state"] for job in under_way(server)) != ["queued", "running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for path in ("/info/", "/datastore/", "/datastore/image?image=ixi_healthy", "/openapi.json"):
            assert requests.get(server.url + path, timeout=120).status_code == 200
        assert requests.post(f"{server.url}/activelearning/first", timeout=120).status_code == 200
        assert answers == {}
    finally:
        hold_file.unlink()
        for job in jobs:
            job.join(120)
    seconds = [answers[name].json()["seconds"]["waiting"] for name in ("one", "two")]
    assert max(seconds) > 0.01
    assert min(seconds) < max(seconds)


def test_an_analysis_that_is_at_hand_is_shown_anew_while_another_runs(server, hold_file):
    scan = {"image": "ixi_lesion", "output": "json"}
    assert server.infer("one", params=scan).status_code == 200
    Path(f"{hold_file}.busy").unlink(missing_ok=True)  # of another test's analysis
    hold_file.write_text("only what is new")
    busy = threading.Thread(
        target=server.infer,
        args=("one",),
        kwargs={"params": {"image": "ixi_healthy", "output": "json"}, "data": {"params": '{"seed": 4711}'}},
    )
    try:
        busy.start()
        deadline = time.monotonic() + 120
        while not Path(f"{hold_file}.busy").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for model in ("one", "one_bands"):
            moved = server.infer(model, params=scan, data={"params": '{"threshold": 0.7}'})
            assert moved.json()["threshold"] == 0.7
            assert moved.json()["seconds"]["waiting"] == 0
        assert busy.is_alive()
    finally:
        Path(f"{hold_file}.busy").unlink(missing_ok=True)
        hold_file.unlink()
        busy.join(120)


def test_a_changed_model_folder_is_noticed_without_a_restart(server):
    def model_hash():
        answer = server.infer("two", params={"image": "ixi_healthy", "output": "json"})
        return answer.json()["model"]["hash"]

    first = model_hash()
    assert model_hash() == first
    app = Path(server.studies).parent / "app"
    (app / "model_weights" / "two" / "card.md").write_text("changed")
    assert model_hash() != first


def test_nothing_was_fetched_and_no_error_logged(server):
    log = server.log.read_text()
    assert "Downloading" not in log
    assert "Traceback" not in log


def test_batch_inference_goes_on_after_a_bad_scan(tmp_path, studies_dir):
    (tmp_path / "app").mkdir()
    app = make_app(tmp_path / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, tmp_path / "studies")
    (studies / "broken.nii.gz").write_text("no image")
    with running_server(studies, app=app, fake_pipeline=True) as server:
        answer = requests.post(f"{server.url}/batch/infer/one?run_sync=true", json={}, timeout=120)
        assert answer.status_code == 200, answer.text
        results = answer.json()
        assert "expected" in results["broken"]["error"]
        assert results["ixi_lesion"]["params"]["lesion_count"] == 1
        assert server.get("/datastore/").json()["label_tags"]["original"] == 2


def test_an_unknown_model_name_stops_the_start_and_lists_the_known(tmp_path, studies_dir):
    """The command as users type it, from another folder, with the environment's programs on PATH."""
    command = Path(sys.executable).parent / "monailabel"
    if not command.exists():
        pytest.skip("the monailabel command is not beside this interpreter")
    (tmp_path / "app").mkdir()
    make_app(tmp_path / "app", {"one": MODEL, "two": MODEL})
    copy_studies(studies_dir, tmp_path / "studies")
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(FAKE_PIPELINE)
    arguments = ["start_server", "--app", "app", "--studies", "studies", "--conf", "models", "one,tree"]
    arguments += ["--host", "127.0.0.1", "--port", "0"]
    done = subprocess.run(
        [str(command), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "'tree'" in done.stdout + done.stderr
    assert "Available: one, two" in done.stdout + done.stderr
