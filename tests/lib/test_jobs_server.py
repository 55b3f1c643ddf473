"""/anomaly/jobs of a real server, with a stand-in for the analysis itself."""

import json
import threading
import time

import pytest
import requests

JOBS = "/anomaly/jobs"


@pytest.fixture(autouse=True)
def _no_hold_left(hold_file):
    yield
    hold_file.unlink(missing_ok=True)


def submit(server, **request):
    return requests.post(server.url + JOBS, json=request, timeout=120)


def cancel(server, job):
    return requests.delete(f"{server.url}{JOBS}/{job}", timeout=120)


def job_of(server, job):
    return server.get(f"{JOBS}/{job}").json()


def wait_for(server, job, *states, seconds=120):
    deadline = time.monotonic() + seconds
    while (now := job_of(server, job))["state"] not in states:
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return now


def test_a_submitted_analysis_is_done_and_says_where_its_result_is(server):
    answer = submit(server, image="ixi_healthy", model="one", params={"operating_point": "specific", "seed": 3})
    assert answer.status_code == 202
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.json()) == {
        "id", "kind", "model", "image", "params", "state", "position", "stage", "progress", "created", "started",
        "finished", "seconds", "error", "result",
    }  # fmt: skip
    job = wait_for(server, answer.json()["id"], "done")
    assert (job["kind"], job["model"], job["image"]) == ("infer", "one", "ixi_healthy")
    assert job["result"] == "/anomaly/results/ixi_healthy?model=one&operating_point=specific&seed=3"
    listed = server.get(f"{JOBS}?image=ixi_healthy&state=done,failed").json()
    assert job["id"] in [one["id"] for one in listed["jobs"]]
    assert listed["waiting"] == 0
    labels = server.get("/datastore/?output=all").json()["objects"]["ixi_healthy"]["labels"]
    assert "anomaly_map" in labels


def test_of_a_request_with_long_parameters_only_the_settings_are_told(server):
    params = {"operating_point": "specific", "note": "x" * 5000}
    answer = server.infer("one", params={"image": "ixi_healthy", "output": "json"}, data={"params": json.dumps(params)})
    assert answer.status_code == 200
    assert server.get(JOBS).json()["jobs"][0]["params"] == {"operating_point": "specific"}


def test_the_result_of_bands_is_that_of_their_model(server):
    job = submit(server, image="ixi_healthy", model="one_bands").json()
    assert (job["model"], wait_for(server, job["id"], "done")["result"]) == (
        "one_bands", "/anomaly/results/ixi_healthy?model=one",
    )  # fmt: skip
    assert server.get("/anomaly/results/ixi_healthy?model=one").status_code == 200
    server.infer("one_bands", params={"image": "ixi_healthy", "output": "json"})
    assert server.get(JOBS).json()["jobs"][0]["result"] == "/anomaly/results/ixi_healthy?model=one"


def test_without_a_model_the_default_of_the_sequence_is_taken(server):
    job = submit(server, image="ixi_lesion").json()
    assert wait_for(server, job["id"], "done")["model"] in {"one", "two"}


@pytest.mark.parametrize(
    ("request_body", "status", "word"),
    [
        ({"image": "nobody", "model": "one"}, 404, "nobody"),
        ({"image": "ixi_lesion", "model": "three"}, 404, "available: one, two"),
        ({"image": "../secret", "model": "one"}, 400, "image id"),
        ({"image": "", "model": "one"}, 400, "stored image"),
        ({"model": "one"}, 400, "stored image"),
        ({"image": ["ixi_lesion"], "model": "one"}, 400, "stored image"),
        ({"image": "ixi_lesion", "model": {"a": 1}}, 400, "name of a model"),
        ({"image": "ixi_lesion", "model": "one", "params": {"score": "best"}}, 400, "l1, ssim_ensemble"),
        ({"image": "ixi_lesion", "model": "one", "params": {"device": "cuda:77"}}, 400, "cpu"),
        ({"image": "ixi_lesion", "model": "one", "params": [1]}, 400, "JSON object"),
        ({"image": "ixi_lesion", "model": "one", "params": {"note": "x" * 5000}}, 400, "at most"),
        ({"image": "ixi_lesion", "model": "one", "params": {"note": float("nan")}}, 400, "finite"),
    ],
)
def test_what_cannot_work_is_refused_at_once(server, request_body, status, word):
    body = json.dumps(request_body).encode()
    answer = requests.post(server.url + JOBS, data=body, headers={"Content-Type": "application/json"}, timeout=120)
    assert answer.status_code == status
    assert word in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"no json", b"[1, 2]", b"null", b"NaN", b'{"image": "ixi_lesion", "params": {"seed": NaN}}',
     b'{"image": "ixi_lesion", "params": {"note": "\\ud800"}}'],
)  # fmt: skip
def test_a_body_that_is_no_object_is_refused(server, body):
    answer = requests.post(server.url + JOBS, data=body, headers={"Content-Type": "application/json"}, timeout=120)
    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]


def test_unknown_jobs_and_states_are_named(server):
    assert server.get(f"{JOBS}/nothing").status_code == 404
    assert cancel(server, "nothing").status_code == 404
    answer = server.get(f"{JOBS}?state=lost")
    assert answer.status_code == 400
    assert "queued, running" in answer.json()["detail"]


def test_a_running_and_a_waiting_job_are_cancelled_and_the_device_is_free(server, hold_file):
    hold_file.touch()
    runs = submit(server, image="ixi_healthy", model="one", params={"seed": 11}).json()["id"]
    waits = submit(server, image="ixi_lesion", model="one", params={"seed": 11}).json()["id"]
    assert submit(server, image="ixi_lesion", model="one", params={"seed": "11"}).json()["id"] == waits
    wait_for(server, runs, "running")
    assert job_of(server, waits)["position"] == 1
    assert cancel(server, waits).json()["state"] == "cancelled"
    assert cancel(server, runs).json()["stage"] in {"stopping", "cancelled"}
    over = wait_for(server, runs, "cancelled")
    assert "cancelled" in over["error"]
    hold_file.unlink()
    assert server.infer("one", params={"image": "ixi_lesion", "output": "json"}).status_code == 200


def test_a_request_to_infer_is_a_job_with_progress_and_can_be_cancelled(server, hold_file):
    hold_file.touch()
    answers = []

    def infer():
        with open(f"{server.studies}/ixi_lesion.nii.gz", "rb") as scan:
            options = {"params": {"output": "json"}, "data": {"params": '{"seed": 41}'}}
            answers.append(server.infer("two", files={"file": ("anna.nii.gz", scan)}, **options))

    thread = threading.Thread(target=infer)
    thread.start()
    deadline = time.monotonic() + 120
    while not (listed := server.get(f"{JOBS}?state=running").json()["jobs"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (job,) = listed
    assert (job["kind"], job["model"], job["image"], job["position"]) == ("infer", "two", "", 0)
    assert cancel(server, job["id"]).status_code == 200
    thread.join(120)
    assert answers[0].status_code == 409
    assert "cancelled" in answers[0].json()["detail"]
    over = job_of(server, job["id"])
    assert (over["state"], over["result"]) == ("cancelled", None)


def test_a_request_that_fails_is_a_failed_job_with_its_text(server):
    answer = server.infer("one", params={"output": "json"}, files={"file": ("a.nii.gz", b"no image")})
    assert answer.status_code == 400
    failed = server.get(f"{JOBS}?state=failed").json()["jobs"][0]
    assert failed["error"] == answer.json()["detail"]


def test_jobs_and_requests_are_served_in_order(server, hold_file):
    hold_file.touch()
    first = submit(server, image="ixi_healthy", model="one", params={"seed": 21}).json()["id"]
    wait_for(server, first, "running")
    second = submit(server, image="ixi_lesion", model="one", params={"seed": 21}).json()["id"]
    answers = []
    options = {"params": {"image": "ixi_lesion", "output": "json"}, "data": {"params": '{"seed": 22}'}}
    thread = threading.Thread(target=lambda: answers.append(server.infer("two", **options)))
    thread.start()
    deadline = time.monotonic() + 120
    while server.get(JOBS).json()["waiting"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    third = submit(server, image="ixi_healthy", model="two", params={"seed": 21}).json()["id"]
    waiting = server.get(f"{JOBS}?state=queued").json()["jobs"]
    assert sorted(one["position"] for one in waiting) == [1, 2, 3]
    request = next(one["id"] for one in waiting if one["id"] not in {second, third})
    hold_file.unlink()
    done = [wait_for(server, job, "done") for job in (first, second, request, third)]
    assert [one["started"] for one in done] == sorted(one["started"] for one in done)
    thread.join(120)
    assert answers[0].status_code == 200


def test_a_scoring_is_a_job_with_progress_and_can_be_stopped(server, hold_file):
    hold_file.touch()
    requests.post(f"{server.url}/scoring/anomaly_scores", json={"model": "one"}, timeout=60).raise_for_status()
    deadline = time.monotonic() + 120
    while True:
        (job,) = (one for one in server.get(JOBS).json()["jobs"] if one["kind"] == "scoring")
        if job["state"] == "running" and job["progress"] is not None:
            break
        assert time.monotonic() < deadline, job
        assert job["state"] in {"queued", "running"}, job
        time.sleep(0.2)
    assert (job["model"], job["position"], job["progress"], job["image"]) == ("one", 0, 0.0, "")
    assert job["params"]["method"] == "anomaly_scores"
    assert cancel(server, job["id"]).json()["state"] == "cancelled"
    assert server.get("/scoring/").json()["status"] == "STOPPED"
    assert job_of(server, job["id"])["finished"]


def test_the_log_never_names_a_scan(server):
    submitted = submit(server, image="ixi_lesion", model="one", params={"seed": 31}).json()["id"]
    wait_for(server, submitted, "done")
    deadline = time.monotonic() + 120
    # The line is written right after the state is told.
    while f"job {submitted[:8]}: done" not in (log := server.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "ixi_lesion" not in log
