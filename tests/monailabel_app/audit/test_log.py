"""What is appended stays: over processes, threads, kills and full files."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import pytest

from monailabel_app.audit import AuditLog, AuditUnwritable, Journal, log_file
from monailabel_app.audit import log as log_module
from monailabel_app.audit.log import rotated
from monailabel_app.audit.verify import records, verify

ROOT = Path(__file__).resolve().parents[3]
WHO = {"name": "anna", "role": "reader", "how": "token"}
APPENDER = """
import sys
from monailabel_app.audit import AuditLog
log = AuditLog(sys.argv[1], max_bytes=int(sys.argv[4]))
for number in range(int(sys.argv[3])):
    tail = log.append("analysis", {"name": sys.argv[2], "role": "admin", "how": "command"}, facts={"number": number})
    print(tail.sequence, tail.hash, flush=True)
"""


def start(path, name, count, max_bytes=10**9):
    command = [sys.executable, "-c", APPENDER, str(path), name, str(count), str(max_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "audit.jsonl"


def test_a_record_has_every_field_and_vouches_for_the_one_before(path):
    log = AuditLog(path)
    log.append("analysis", WHO, "ok", {"image": "Smith_John", "model": "ddpm_t1", "seconds": 1.5})
    log.append("review", WHO)
    started, first, second = records(path)
    assert started["event"] == "log_started"
    assert first["who"] == WHO
    assert first["outcome"] == "ok"
    assert first["facts"]["model"] == "ddpm_t1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert [record["sequence"] for record in (started, first, second)] == [1, 2, 3]
    assert second["previous"] == first["hash"]
    assert verify(path).whole


def test_nothing_of_a_patient_is_in_any_file(path):
    log = AuditLog(path)
    for name in ("image", "patient", "file_name", "comment", "model"):
        log.append("label_saved", WHO, facts={name: "Smith^John 1950", "more": {"dir": "/data/Smith^John", "n": [1]}})
    written = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"Smith" not in written
    assert b"1950" not in written
    assert b"/data" not in written


def test_the_log_and_its_key_are_for_their_owner_only(path):
    AuditLog(path).append("review", WHO)
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


def test_an_append_does_not_read_the_log_again(path, monkeypatch):
    log = AuditLog(path)
    log.append("review", WHO)
    reads = []
    monkeypatch.setattr(log_module.os, "pread", lambda *given: reads.append(given))
    for _ in range(20):
        log.append("review", WHO)
    assert not reads


def test_threads_and_processes_share_one_chain(path):
    log = AuditLog(path)
    processes = [start(path, f"process{number}", 40) for number in range(2)]
    threads = [
        threading.Thread(target=lambda: [log.append("review", WHO) for _ in range(20)], daemon=True) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        assert process.wait(600) == 0
        process.stdout.close()
    report = verify(path)
    assert report.whole, report.faults
    assert report.records == 1 + 2 * 40 + 3 * 20


def test_what_was_acknowledged_before_a_kill_is_there(path):
    process = start(path, "killed", 10**6)
    told = [process.stdout.readline().split() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    told += [line.split() for line in process.stdout.read().splitlines() if len(line.split()) == 2]
    process.wait()
    process.stdout.close()
    AuditLog(path).append("review", WHO)
    kept = {record["hash"] for record in records(path)}
    whole = {pair[1] for pair in told if len(pair[1]) == 64}
    assert whole
    assert whole <= kept
    assert verify(path).whole


def test_a_long_piece_without_an_end_does_not_swallow_the_next_record(path):
    log = AuditLog(path)
    log.append("review", WHO)
    log.close()
    with path.open("ab") as file:
        file.write(b"x" * 200000)
    AuditLog(path).append("analysis", WHO)
    assert [record["event"] for record in records(path)] == ["log_started", "review", "log_repaired", "analysis"]
    assert verify(path).whole


@pytest.mark.parametrize("left", [1, 20, 150])
def test_a_torn_line_is_kept_aside_and_a_record_says_so(path, left):
    log = AuditLog(path)
    log.append("review", WHO)
    log.append("analysis", WHO)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:left])
    torn = verify(path)
    assert [fault.kind for fault in torn.faults] == ["torn"]
    AuditLog(path).append("review", WHO)
    events = [record["event"] for record in records(path)]
    assert events[-2:] == ["log_repaired", "review"]
    assert path.with_name("audit.jsonl.torn").read_bytes() == whole.splitlines()[-1][:left] + b"\n"
    assert verify(path).whole


def test_a_log_that_was_cut_off_stays_known_as_such(path):
    log = AuditLog(path)
    for _ in range(5):
        log.append("review", WHO)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert [fault.kind for fault in verify(path).faults] == ["truncated"]
    AuditLog(path).append("review", WHO)
    assert [fault.kind for fault in verify(path).faults] == ["removed"]
    repaired = next(record for record in records(path) if record["event"] == "log_repaired")
    assert repaired["facts"]["missing"] == 3


def test_a_log_that_was_deleted_stays_known_as_such(path):
    log = AuditLog(path)
    log.append("review", WHO)
    path.unlink()
    log.append("review", WHO)
    assert [fault.kind for fault in verify(path).faults] == ["removed"]


def test_a_full_log_goes_on_in_another_file(path):
    processes = [start(path, f"process{number}", 30, max_bytes=4000) for number in range(2)]
    for process in processes:
        assert process.wait(600) == 0
        process.stdout.close()
    assert len(rotated(path)) >= 3
    report = verify(path)
    assert report.whole, report.faults
    assert report.records == 61
    rotated(path)[1].unlink()
    assert [fault.kind for fault in verify(path).faults] == ["removed"]


def test_older_files_may_be_moved_away_when_their_end_is_known(path):
    log = AuditLog(path, max_bytes=1500)
    for _ in range(12):
        log.append("review", WHO)
    first = rotated(path)[0]
    end = json.loads(first.read_bytes().splitlines()[-1])["hash"]
    first.unlink()
    assert [fault.kind for fault in verify(path).faults] == ["removed"]
    assert verify(path, after=end).whole


def test_a_new_month_begins_a_new_file(path, monkeypatch):
    log = AuditLog(path)
    log.append("review", WHO)
    monkeypatch.setattr(log, "_month", "2020-01")
    log.append("review", WHO)
    assert len(rotated(path)) == 1
    assert verify(path).whole


def test_a_lost_key_is_replaced_and_said(path):
    log = AuditLog(path)
    log.append("analysis", WHO, facts={"image": "a"})
    log.close()
    path.with_name("audit.key").unlink()
    AuditLog(path).append("analysis", WHO, facts={"image": "a"})
    found = list(records(path))
    assert [record["event"] for record in found] == ["log_started", "analysis", "key_changed", "analysis"]
    assert found[1]["facts"] != found[3]["facts"]
    assert verify(path).whole


def test_a_forked_process_has_a_lock_of_its_own(path):
    log = AuditLog(path)
    log.append("review", WHO)
    child = os.fork()
    if not child:
        code = 1
        try:
            for _ in range(40):
                log.append("review", WHO)
            code = 0
        finally:
            os._exit(code)
    for _ in range(40):
        log.append("review", WHO)
    assert os.waitpid(child, 0)[1] == 0
    report = verify(path)
    assert report.whole, report.faults
    assert report.records == 82


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(path, monkeypatch):
    log = AuditLog(path)
    log.append("review", WHO)
    before, write = path.read_bytes(), os.write

    def full(file, data):
        write(file, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_module.os, "write", full)
    with pytest.raises(AuditUnwritable, match="No space left"):
        log.append("review", WHO)
    monkeypatch.undo()
    assert path.read_bytes() == before
    log.append("review", WHO)
    assert verify(path).whole


def test_facts_that_are_too_many_are_counted_instead(path):
    AuditLog(path).append("analysis", WHO, facts={f"fact{n}": {f"f{m}": "x" for m in range(40)} for n in range(40)})
    assert list(records(path))[-1]["facts"] == {"facts_left_out": 40}


def test_a_journal_raises_only_where_the_log_is_required(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    easy, strict = Journal(blocked / "audit.jsonl"), Journal(blocked / "audit.jsonl", required=True)
    assert easy.note("review", WHO) is None
    assert easy.failed == 1
    with pytest.raises(AuditUnwritable):
        strict.note("review", WHO)


def test_where_the_log_is(tmp_path, monkeypatch):
    monkeypatch.delenv("ANOMALY_AUDIT", raising=False)
    assert log_file(tmp_path) == tmp_path / "logs" / "audit.jsonl"
    monkeypatch.setenv("ANOMALY_AUDIT", str(tmp_path / "other.jsonl"))
    assert log_file(tmp_path) == tmp_path / "other.jsonl"
    assert log_file(tmp_path, "off") is None


@pytest.mark.slow
def test_a_long_log_takes_no_longer_to_append_to(path):
    long, short = AuditLog(path), AuditLog(path.with_name("short.jsonl"))
    for _ in range(20000):
        long.append("review", WHO)
    times = {long: [], short: []}
    for _ in range(200):  # in turn, so that what else the machine does is the same for both
        for log, took in times.items():
            began = time.perf_counter()
            log.append("review", WHO)
            took.append(time.perf_counter() - began)
    assert median(times[long]) < 5 * median(times[short])
