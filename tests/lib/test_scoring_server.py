"""Scoring through a real server: started by its address, done in a process of its own, seen without a restart."""

import time

import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """As long as this file exists, no analysis ends."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def scoring_server(tmp_path_factory, studies_dir, hold):
    folder = tmp_path_factory.mktemp("scoring")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL, "two": MODEL})
    studies = copy_studies(studies_dir, folder / "studies")
    (studies / "broken.nii.gz").write_text("no image")
    # Whatever the server knows of the other process, it does not know from watching the folder.
    env = {"MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false", "FAKE_HOLD": str(hold)}
    with running_server(studies, app=app, env=env, fake_pipeline=True) as running:
        yield running


def post(server, path, **kwargs):
    return requests.post(server.url + path, timeout=120, **kwargs)


def finished(server, wait_s=600):
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        task = server.get("/scoring/").json()
        if task["status"] not in {"SUBMITTED", "RUNNING"}:
            return task
        time.sleep(0.3)
    raise AssertionError(f"the scoring did not end: {task}")


def info(server, image):
    return server.get("/datastore/?output=all").json()["objects"][image]["image"]["info"]


def test_it_is_offered_with_a_description(scoring_server):
    offered = scoring_server.get("/info/").json()["scoring"]
    assert set(offered) >= {"anomaly_scores"}
    assert "without a current one" in offered["anomaly_scores"]["description"]


def test_what_could_not_be_done_is_refused_before_a_process_is_started(scoring_server):
    assert scoring_server.get("/scoring/").status_code == 404
    for path, body, said in (
        ("/scoring/tree", {}, "anomaly_scores"),
        ("/scoring/anomaly_scores", {"model": "tree"}, "one, two"),
    ):
        answer = post(scoring_server, path, json=body)
        assert answer.status_code == 404
        assert said in answer.json()["detail"]
    assert post(scoring_server, "/scoring/anomaly_scores", json={"limit": "x"}).status_code == 400
    # A method named in the parameters is not the one that was checked.
    answer = post(scoring_server, "/scoring/anomaly_scores", json={"method": "tree", "limit": "x"})
    assert answer.status_code == 400
    assert scoring_server.get("/scoring/").status_code == 404


def test_every_scan_gets_a_score_and_a_label_submitted_meanwhile_is_kept(scoring_server, lesion_mask, hold):
    hold.touch()
    started = post(scoring_server, "/scoring/anomaly_scores", json={"model": "one"})
    assert started.status_code == 200, started.text
    again = post(scoring_server, "/scoring/anomaly_scores", json={})
    assert again.status_code == 429
    with lesion_mask.open("rb") as label:
        answer = requests.put(
            f"{scoring_server.url}/datastore/label?image=ixi_lesion&tag=final", files={"label": label}, timeout=60
        )
    assert answer.status_code == 200, answer.text
    hold.unlink()

    task = finished(scoring_server)
    assert task["status"] == "DONE", task
    progress = task["progress"]
    assert (progress["status"], progress["done"], progress["total"], progress["failed"]) == ("done", 3, 3, 1)
    assert any("3 of 3 done, 1 failed" in line for line in task["details"])

    scored = info(scoring_server, "ixi_healthy")["anomaly"]["one"]
    assert scored["lesions"] == 1
    assert scored["score"] > 0
    assert "expected" in info(scoring_server, "broken")["anomaly"]["one"]["error"]
    objects = scoring_server.get("/datastore/?output=all").json()["objects"]
    assert objects["ixi_lesion"]["labels"]["final"]["info"]["voxels"] > 0
    assert scoring_server.get("/info/").json()["datastore"]["completed"] == 1


def test_the_next_run_has_nothing_to_do(scoring_server):
    """In the server's own process, which shares the information with the other's."""
    answer = post(scoring_server, "/scoring/anomaly_scores?run_sync=true", json={"model": "one"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"current": 3, "without_model": 0, "analysed": 0, "failed": 0, "left": 0}
    assert "Traceback" not in scoring_server.log.read_text()
