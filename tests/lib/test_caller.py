"""A client that closes its connection, on a real server with a stand-in for the analysis itself."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from tests.benchmarks.load_trouble import gone_while_waiting
from tests.lib.test_jobs_server import job_of, submit, wait_for


@pytest.fixture(autouse=True)
def _no_hold_left(server, hold_file):
    yield
    hold_file.unlink(missing_ok=True)
    # Or the next test's hold would go on holding the last one's.
    until(lambda: not server.get("/anomaly/jobs?state=running,queued").json()["jobs"])


def requests_of(server, state):
    return [job for job in server.get(f"/anomaly/jobs?state={state}").json()["jobs"] if not job["image"]]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def in_thread(work, *given):
    thread = threading.Thread(target=work, args=given, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def upload(server):
    """A scan's file, to be sent and not to be waited for."""
    with open(f"{server.studies}/ixi_lesion.nii.gz", "rb") as scan:
        return scan.read()


def test_whoever_goes_while_waiting_gives_up_the_place_in_line(server, hold_file, upload):
    hold_file.touch()
    runs = submit(server, image="ixi_healthy", model="one", params={"seed": 901}).json()["id"]
    wait_for(server, runs, "running")
    leave = threading.Event()
    client = in_thread(gone_while_waiting, server.url, "one", upload, leave)
    (waits,) = until(lambda: requests_of(server, "queued"))
    leave.set()
    client.join(120)
    over = wait_for(server, waits["id"], "cancelled")
    assert over["started"] is None
    assert "closed its connection" in over["error"]
    assert job_of(server, runs)["state"] == "running"


def test_an_upload_s_analysis_stops_when_nobody_waits_for_it_any_more(server, hold_file, upload):
    hold_file.touch()
    leave = threading.Event()
    client = in_thread(gone_while_waiting, server.url, "two", upload, leave)
    (runs,) = until(lambda: requests_of(server, "running"))
    leave.set()
    client.join(120)
    assert wait_for(server, runs["id"], "cancelled")["started"] is not None
    hold_file.unlink()
    assert server.infer("two", params={"image": "ixi_lesion", "output": "json"}).status_code == 200


def test_the_analysis_of_a_stored_scan_goes_on_as_its_result_is_kept(server, hold_file):
    hold_file.touch()
    address = urlsplit(server.url)
    params = "params=" + json.dumps({"seed": 902}).replace('"', "%22")
    head = (
        "POST /infer/one?image=ixi_healthy&output=json HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(params)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall((head + params).encode())
        (runs,) = until(
            lambda: [
                job
                for job in server.get("/anomaly/jobs?state=running").json()["jobs"]
                if job["params"].get("seed") == 902
            ]
        )
    time.sleep(1.5)
    assert job_of(server, runs["id"])["state"] == "running"
    hold_file.unlink()
    assert wait_for(server, runs["id"], "done")["error"] is None
