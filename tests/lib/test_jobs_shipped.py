"""Jobs with nothing replaced: the stock command, a shipped model, the sample scan."""

import re
import time

import pytest
import requests

from lib import catalogue
from tests.server_fixture import ROOT, copy_studies, running_server

MODELS = list(catalogue.list_models(ROOT))
SLOW_MODEL, QUICK_MODEL = "ddpm_t1", "intensity_t1"
JOBS = "/anomaly/jobs"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not {SLOW_MODEL, QUICK_MODEL} <= set(MODELS), reason="the shipped models are not there"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory, studies_dir):
    folder = tmp_path_factory.mktemp("jobs")
    studies = copy_studies(studies_dir, folder / "studies")
    conf = {"models": f"{SLOW_MODEL},{QUICK_MODEL}"}
    with running_server(studies, conf=conf, cwd=folder, wait_s=600) as running:
        yield running


def submit(server, **request):
    answer = requests.post(server.url + JOBS, json=request, timeout=120)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def follow(server, job, until, seconds=1800):
    """What was told of a job, one entry per change, until ``until`` holds."""
    told, deadline = [], time.monotonic() + seconds
    while True:
        now = server.get(f"{JOBS}/{job}").json()
        if not told or (now["stage"], now["progress"]) != (told[-1]["stage"], told[-1]["progress"]):
            told.append(now)
        if until(now):
            return told
        assert now["state"] in {"queued", "running"}, now
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def test_progress_grows_a_running_job_is_cancelled_and_the_next_one_has_the_device(server):
    slow = submit(server, image="ixi_lesion", model=SLOW_MODEL, params={"device": "cpu", "seed": 5})
    waits = submit(server, image="ixi_lesion", model=QUICK_MODEL, params={"device": "cpu"})
    told = follow(server, slow, lambda job: job["stage"] == "reconstruction" and job["progress"] > 0.5)
    assert server.get(f"{JOBS}/{waits}").json()["position"] == 1
    # In the log is every stage; who asks now and then may miss a short one.
    named = rf"job {slow[:8]}: (brain extraction|alignment|reconstruction)$"
    stages = re.findall(named, server.log.read_text(errors="replace"), re.MULTILINE)
    assert list(dict.fromkeys(stages)) == ["brain extraction", "alignment", "reconstruction"]
    assert {job["stage"] for job in told} >= {"reconstruction"}
    shares = [job["progress"] for job in told if job["progress"] is not None]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 5

    assert requests.delete(f"{server.url}{JOBS}/{slow}", timeout=120).status_code == 200
    over = follow(server, slow, lambda job: job["state"] == "cancelled")[-1]
    assert over["result"] is None
    labels = server.get("/datastore/?output=all").json()["objects"]["ixi_lesion"]["labels"]
    assert labels == {} or SLOW_MODEL not in str(labels)

    done = follow(server, waits, lambda job: job["state"] == "done")[-1]
    assert done["progress"] == 1
    assert done["result"] == f"/anomaly/results/ixi_lesion?model={QUICK_MODEL}"
    assert server.get("/info/").status_code == 200


def test_the_result_is_where_the_job_says(server):
    done = follow(
        server, submit(server, image="ixi_lesion", model=QUICK_MODEL, params={"device": "cpu"}),
        lambda job: job["state"] == "done",
    )[-1]  # fmt: skip
    result = server.get(done["result"])
    assert result.status_code == 200, result.text
    assert result.json()["image"] == "ixi_lesion"


def test_the_log_has_stages_and_no_scan(server):
    log = server.log.read_text(errors="replace")
    assert ": brain extraction" in log
    assert "ixi_lesion" not in log
