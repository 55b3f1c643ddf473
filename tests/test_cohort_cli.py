"""``python main.py cohort`` as users run it, killed and interrupted in the middle."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from monailabel_app.audit.search import find
from monailabel_app.audit.verify import verify

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "tests/data/studies"
pytestmark = pytest.mark.slow


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    (folder / "deeper").mkdir(parents=True)
    for number in range(3):
        shutil.copy(STUDIES / "ixi_lesion.nii.gz", folder / f"lesion{number}.nii.gz")
    shutil.copy(STUDIES / "ixi_healthy.nii.gz", folder / "deeper" / "healthy.nii.gz")
    (folder / "broken.nii.gz").write_text("no image")
    return folder


def command(scans, out, *more):
    return [sys.executable, str(ROOT / "main.py"), "cohort", str(scans), "--out", str(out), "--model", "intensity_t1",
            "--workers", "1", *more]  # fmt: skip


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900, cwd=ROOT)


def records(out):
    path = out / "cohort.jsonl"
    return [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}")] if path.exists() else []


def start_and_wait(scans, out, count):
    process = subprocess.Popen(
        command(scans, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # As at a terminal: started in the background by a shell the tests ignore Ctrl-C, and so would the run.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 900
    while len(records(out)) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def wait_until_gone(pids):
    end = time.monotonic() + 600
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end, "a worker outlived the run"
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def test_killed_in_the_middle_it_goes_on_where_it_was(scans, tmp_path):
    out = tmp_path / "out"
    process = start_and_wait(scans, out, 2)
    workers = workers_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(records(out))
    assert before < 5
    with open(out / "cohort.jsonl", "ab") as stream:
        stream.write(b'{"scan":"half a')  # as a kill in mid-line leaves it
    wait_until_gone(workers)
    done = run(scans, out)
    assert done.returncode == 0, done.stderr
    assert f"{before} had a current record" in done.stdout
    assert "1 cut or damaged lines" in done.stdout
    with open(out / "cohort.csv", newline="") as stream:
        rows = {row["scan"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"lesion0.nii.gz", "lesion1.nii.gz", "lesion2.nii.gz", "deeper/healthy.nii.gz", "broken.nii.gz"}
    assert rows["broken.nii.gz"]["state"] == "failed"
    assert float(rows["lesion0.nii.gz"]["score"]) > float(rows["deeper/healthy.nii.gz"]["score"])
    assert "5 had a current record" in run(scans, out).stdout
    log = Path(os.environ["ANOMALY_AUDIT"])
    for name, row in rows.items():
        noted = find(log, event="cohort_scan", image=name)[-1]
        assert noted["who"]["how"] == "command"
        assert noted["outcome"] == ("ok" if row["state"] == "analysed" else "failed")
        assert noted["facts"]["seconds"]["total"] >= 0
        assert noted["facts"]["hash"]
        assert noted["facts"]["input"]
    assert find(log, event="cohort_ended")[-1]["facts"]["current"] == 5
    assert verify(log).whole


def test_ctrl_c_ends_it_with_its_tables_and_without_workers(scans, tmp_path):
    out = tmp_path / "out"
    for number in range(3, 40):  # enough that it is still at work when the signal comes
        shutil.copy(STUDIES / "ixi_lesion.nii.gz", scans / f"lesion{number}.nii.gz")
    process = start_and_wait(scans, out, 1)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 130, text
    assert "goes on with the rest" in text
    assert "Traceback" not in text
    assert (out / "cohort.csv").is_file()
    wait_until_gone(workers)


def test_what_a_hundred_thousand_scans_would_cost_is_told(scans, tmp_path):
    out = tmp_path / "out"
    done = run(scans / "deeper", out, "--estimate", "--keep", "masks")
    assert done.returncode == 0, done.stderr
    assert "intensity_t1 on cpu:" in done.stdout
    assert "100,000 scans:" in done.stdout
    record = json.loads(records(out)[0])
    assert (out / record["files"]["mask"]).is_file()
