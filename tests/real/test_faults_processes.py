"""Several processes on the same folders, one of them killed; a request to end amid work; a clock that was set back."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import nibabel as nib
import pytest
import requests

from monailabel_app.weights.model_folder import verify
from monailabel_app.weights.version_layout import current
from tests.real.faults import MODEL, ROOT, Killable, Stop, count, few_models, label, leftovers, scan, wait_for
from tests.server_fixture import start

pytestmark = pytest.mark.slow

SCANS = [f"scan{number}" for number in range(5)]
# What a batch analysis does to the table: a datastore of its own, and one record after the other.
_BATCH = """
import itertools, sys
from lib.datastore import AnomalyLocalDatastore
from lib.scoring.base import keep
store = AnomalyLocalDatastore(sys.argv[1], extensions=["*.nii.gz"])
scans = sorted(scan for scan in store.list_images() if scan.startswith("scan"))
for number in itertools.count(1):
    keep(store, scans[number % len(scans)], "anomaly", {f"model{number}": {"score": number}})
    print(number, flush=True)
"""


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    return few_models(tmp_path / "app", MODEL)


@pytest.fixture
def studies(tmp_path):
    (tmp_path / "studies").mkdir()
    return tmp_path / "studies"


def batch(studies):
    """A process that writes already."""
    command = [sys.executable, "-c", _BATCH, str(studies)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout.readline() == "1\n"
    return process


def numbers(process):
    """Of its records that were kept; the last line may be cut off."""
    return [1, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n"))]


def sending(send, done, stop):
    for number in itertools.count(1):
        if stop.is_set():
            return
        try:
            answer = send(number)
        except (requests.RequestException, OSError):
            return
        if answer.status_code != 200:
            done.append(answer.text)
            return
        done.append(number)


def test_no_change_is_lost_with_two_servers_and_a_batch_of_which_two_are_killed(app, studies, tmp_path):
    """Hundreds of changes of five scans by three processes; one server and the batch die by SIGKILL meanwhile."""
    for name in SCANS:
        scan(studies / f"{name}.nii.gz")
    with Killable(studies, app) as one, Killable(studies, app, {"disk_cache": str(tmp_path / "c")}) as two:
        stop = threading.Event()

        def mark(server, key):
            def send(number):
                info = {"info": json.dumps({f"{key}_{number}": number})}
                query = {"image": SCANS[number % len(SCANS)]}
                return requests.put(f"{server.url}/datastore/image/info", params=query, data=info, timeout=60)

            return send

        def submit(server, tag):
            def send(number):
                file = label(tmp_path / f"{tag}.nii.gz", number)
                return server.submit(SCANS[number % len(SCANS)], file, tag=tag)

            return send

        senders = {"a": mark(one, "a"), "b": mark(two, "b")}
        senders |= {"final_one": submit(one, "final_one"), "final_two": submit(two, "final_two")}
        done = {name: [] for name in senders}
        threads = [threading.Thread(target=sending, args=(send, done[name], stop)) for name, send in senders.items()]
        batches = [batch(studies)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(done["a"]) > 40 and len(done["b"]) > 40, "the first changes")
        two.kill()
        batches[0].kill()
        batches.append(batch(studies))
        wait_for(lambda: len(done["a"]) > 100, "more changes")
        stop.set()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
        batches[1].kill()
        records = [numbers(process) for process in batches]
        for process in batches:
            process.wait(60)

        listed = json.loads((studies / "datastore_v2.json").read_text())["objects"]
        assert set(listed) == set(SCANS)
        for key in ("a", "b"):
            assert all(isinstance(number, int) for number in done[key]), done[key][-1]
            for number in done[key]:
                assert listed[SCANS[number % len(SCANS)]]["image"]["info"][f"{key}_{number}"] == number
        written = set(records[0]) | set(records[1])
        assert written
        for number in written:
            held = listed[SCANS[number % len(SCANS)]]["image"]["info"]["anomaly"]
            assert held[f"model{number}"]["score"] == number
        for tag in ("final_one", "final_two"):
            newest = {SCANS[number % len(SCANS)]: number for number in done[tag]}
            assert newest
            for image, number in newest.items():
                assert tag in listed[image]["labels"]
                assert count(studies / "labels" / tag / f"{image}.nii.gz") >= number
        two.up()
        assert set(two.images()) == set(SCANS) == set(one.images())
        assert not leftovers(studies)


# Publishes again and again, each time in a process that dies at a later call; says how each ended, waits for a line.
_PUBLISH = """
import itertools, os, shutil, sys
from pathlib import Path
from monailabel_app.weights import versions

root = Path(sys.argv[1])

def publish(left):
    staged = versions.new_staging(root, "intensity_t1")
    for file in (root / "model_weights" / "intensity_t1").iterdir():
        shutil.copy(file, staged)

    def mortal(name):
        call = getattr(os, name)
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
            return call(*args, **kwargs)
        setattr(os, name, counted)

    for name in ("rename", "replace", "fsync", "utime", "unlink"):
        mortal(name)
    versions.publish(root, "intensity_t1", staged, promote=True)

for calls in itertools.count():
    child = os.fork()
    if child == 0:
        publish(calls)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(status, flush=True)
    if status == 0 or not sys.stdin.readline():
        break
"""


def test_a_publish_killed_at_any_call_leaves_one_version_serving_and_clients_never_notice(app, studies, lesion_scan):
    """Real processes, killed at their n-th call that changes a file; the server is asked after each."""
    shutil.copy(lesion_scan, studies / "head.nii.gz")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        Killable(studies, app) as server,
        subprocess.Popen([sys.executable, "-c", _PUBLISH, str(app)], cwd=ROOT, **pipes) as publisher,
    ):
        before = server.infer("head")
        assert before.status_code == 200
        seen, killed = [before.json()["model"]["id"]], 0
        for status in map(int, iter(publisher.stdout.readline, "")):
            answer = server.infer("head")
            assert answer.status_code == 200, answer.text
            seen.append(answer.json()["model"]["id"])
            assert answer.json()["anomaly_score"] == before.json()["anomaly_score"]
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
            publisher.stdin.write("on\n")
            publisher.stdin.flush()
        assert killed > 5
        assert seen[0] == MODEL
        assert seen[-1].startswith(f"{MODEL}@")
        versions_seen = [int(name.partition("@")[2] or 0) for name in seen]
        assert versions_seen == sorted(versions_seen), "an older version served again"
    verify(current(app, MODEL))


def test_a_server_that_is_asked_to_end_amid_an_analysis_ends_and_one_after_another_starts(app, studies, lesion_scan):
    shutil.copy(lesion_scan, studies / "head.nii.gz")
    stop = Stop(app)
    with Killable(studies, app, env=stop.env) as server:
        answers = []

        def ask():
            with suppress(requests.RequestException):
                answers.append(server.infer("head").status_code)

        stop.at("brain extraction")
        client = threading.Thread(target=ask)
        client.start()
        stop.wait(server)
        stop.at("")
        # It is told when it goes on, in the middle of the analysis.
        server.server.process.send_signal(signal.SIGTERM)
        server.server.process.send_signal(signal.SIGCONT)
        server.server.process.wait(300)
        client.join(300)
        # Cancelled and told so, or cut off; not an answer of something unfinished, nor a failure.
        assert set(answers) <= {409, 503, 200}
        assert not leftovers(studies, app)
        # A loop of restarts, each killed while it starts: the one after them works.
        for seconds in (1, 3, 6):
            with suppress(TimeoutError, RuntimeError):
                start_and_kill(server, seconds)
        server.up()
        assert server.infer("head").status_code == 200


def start_and_kill(server, seconds):
    process, log, _ = start(server.studies, app=server.app, conf=server.conf, env=server.env)
    server._logs.append(log)
    time.sleep(seconds)
    process.kill()
    process.wait(30)


def test_files_of_an_hour_ahead_of_the_clock_do_no_harm(app, studies, lesion_scan, tmp_path):
    """What is on the disk when the clock is set back: all of it is from the future."""
    shutil.copy(lesion_scan, studies / "head.nii.gz")
    scan(studies / "small.nii.gz", 1)
    with Killable(studies, app) as server:
        first = server.infer("head").json()
        assert server.submit("small", label(tmp_path / "l.nii.gz", 5)).status_code == 200
        server.kill()
        ahead = time.time() + 3600
        for folder in (studies, app / "cache", app / "logs"):
            for path in folder.rglob("*"):
                os.utime(path, (ahead, ahead))
        server.up()
        assert count(studies / "labels" / "final" / "small.nii.gz") == 5
        assert server.submit("small", label(tmp_path / "l.nii.gz", 6)).status_code == 200
        assert server.label("small").content == (tmp_path / "l.nii.gz").read_bytes()
        again = server.infer("head")
        assert again.status_code == 200
        assert again.json()["anomaly_score"] == first["anomaly_score"]
        info = {"info": json.dumps({"healthy": True})}
        marked = requests.put(f"{server.url}/datastore/image/info", params={"image": "head"}, data=info, timeout=60)
        assert marked.status_code == 200
        # While it runs, somebody copies another scan over this one.
        shutil.copy(scan(tmp_path / "other.nii.gz", 9), studies / "small.nii.gz")
        wait_for(lambda: server.label("small").status_code == 404, "the label of the former scan to be put aside")
        kept = next((studies / "replaced").iterdir())
        assert int(nib.load(kept / "final.nii.gz").get_fdata().sum()) == 6
