"""A real server is killed with jobs under way, and started anew."""

import time

import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server


def wait_for(server, job, state):
    deadline = time.monotonic() + 600
    while (now := server.get(f"/anomaly/jobs/{job}").json()).get("state") != state:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


@pytest.mark.slow
def test_jobs_that_a_killed_server_had_taken_are_done_by_the_next(tmp_path, studies_dir):
    (tmp_path / "app").mkdir()
    app, studies = make_app(tmp_path / "app", {"one": MODEL}), copy_studies(studies_dir, tmp_path / "studies")
    hold = tmp_path / "hold"
    hold.touch()
    given = {"app": app, "env": {"FAKE_HOLD": str(hold)}, "fake_pipeline": True}
    with running_server(studies, **given) as server:
        taken = []
        for image in ("ixi_healthy", "ixi_lesion"):
            body = {"image": image, "model": "one", "params": {"seed": 5}}
            answer = requests.post(f"{server.url}/anomaly/jobs", json=body, timeout=300)
            assert answer.status_code == 202
            taken.append(answer.json()["id"])
        wait_for(server, taken[0], "running")
        server.process.kill()
        server.process.wait(60)
    (kept,) = (app / "cache").glob("jobs_*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    hold.unlink()
    with running_server(studies, **given) as server:
        done = [wait_for(server, job, "done") for job in taken]
        assert [job["image"] for job in done] == ["ixi_healthy", "ixi_lesion"]
        assert [job["params"] for job in done] == [{"seed": 5}] * 2
        assert server.get(done[0]["result"]).status_code == 200
        assert '"jobs": []' in kept.read_text()
