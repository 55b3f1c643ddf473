"""A server that is told to end while it analyses: it does, soon, and says so to whoever waits."""

import threading
import time

import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server


def test_a_server_ends_soon_while_a_job_and_a_request_are_under_way(tmp_path, studies_dir):
    (tmp_path / "app").mkdir()
    app = make_app(tmp_path / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, tmp_path / "studies")
    hold = tmp_path / "hold"
    hold.touch()
    answers = []
    with running_server(studies, app=app, env={"FAKE_HOLD": str(hold)}, fake_pipeline=True) as server:

        def infer():
            answers.append(server.infer("one", params={"image": "ixi_lesion", "output": "json"}))

        job = requests.post(f"{server.url}/anomaly/jobs", json={"image": "ixi_healthy", "model": "one"}, timeout=60)
        assert job.status_code == 202, job.text
        request = threading.Thread(target=infer)
        request.start()
        deadline = time.monotonic() + 120
        # The job that runs, and the request that waits behind it: a job that is queued still waits, too.
        while [one["state"] for one in server.get("/anomaly/jobs").json()["jobs"]] != ["queued", "running"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # The analysis goes on for minutes, if it is not cancelled.
        server.process.terminate()
        server.process.wait(120)
        request.join(120)
        log = server.log.read_text(errors="replace")
    assert answers[0].status_code == 409
    assert "shutting down" in answers[0].json()["detail"]
    assert log.count("cancelled after") == 2
    assert "Traceback" not in log
