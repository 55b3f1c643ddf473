"""The log where somebody moves, restores or damages its files while it is written, and where its disk is full."""

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from monailabel_app.audit import AuditLog, AuditUnwritable, note_command
from monailabel_app.audit import log as log_module
from monailabel_app.audit.facts import keyed, read_key
from monailabel_app.audit.log import rotated
from monailabel_app.audit.verify import records, verify

WHO = {"name": "anna", "role": "reader", "how": "token"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "audit.jsonl"


def fill(path, count, max_bytes=10**9):
    log = AuditLog(path, max_bytes=max_bytes)
    for number in range(count):
        log.append("analysis", WHO, facts={"image": f"scan{number}"})
    return log


def test_a_disk_that_is_full_when_a_new_file_begins_costs_no_other_file_and_no_later_record(path, monkeypatch):
    log = fill(path, 3)
    full = [OSError(errno.ENOSPC, "No space left on device")]
    opened = log_module.open_own

    def refusing(file, flags=0):
        if full and not file.exists():
            raise full.pop()
        return opened(file, flags)

    monkeypatch.setattr(log_module, "open_own", refusing)
    monkeypatch.setattr(log, "_month", "2020-01")
    with pytest.raises(AuditUnwritable, match="No space left"):
        log.append("review", WHO)
    # Whatever takes the number of the file that was closed is somebody else's.
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    try:
        log.append("review", WHO)
        assert {os.fstat(other).st_rdev for other in others} == {os.stat(os.devnull).st_rdev}
    finally:
        for other in others:
            os.close(other)
    assert verify(path).whole
    assert [record["event"] for record in records(path)][-1] == "review"


def test_files_that_are_moved_aside_stay_as_they_were_and_a_whole_log_begins(path):
    log = fill(path, 3)
    aside = path.parent.parent / "aside"
    aside.mkdir()
    for file in list(path.parent.glob("audit*")):
        file.rename(aside / file.name)
    log.append("analysis", WHO, facts={"image": "scan9"})
    AuditLog(path).append("review", WHO)
    log.append("review", WHO)
    assert verify(aside / path.name).faults == []
    report = verify(path)
    assert (report.faults, report.notes) == ([], [])
    found = list(records(path))
    assert [record["event"] for record in found] == ["log_started", "analysis", "review", "review"]
    assert found[1]["facts"]["image"] == keyed(read_key(path.parent, make=False), "scan9")


def test_a_lock_that_was_moved_aside_keeps_nobody_apart(path):
    log = fill(path, 1)
    path.with_name("audit.jsonl.lock").rename(path.with_name("moved"))
    with path.with_name("audit.jsonl.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        appending = threading.Thread(target=log.append, args=("review", WHO), daemon=True)
        appending.start()
        appending.join(0.3)
        assert appending.is_alive(), "it was written while somebody else held the lock"
    appending.join(300)
    assert [record["event"] for record in records(path)][-1] == "review"


def test_a_log_restored_from_before_overwrites_no_full_file(path):
    log = fill(path, 6)
    before = path.read_bytes()
    log.append("review", WHO)
    first = AuditLog(path, max_bytes=1)
    first.append("review", WHO)
    full = rotated(path)[0]
    kept = full.read_bytes()
    path.write_bytes(before)
    AuditLog(path, max_bytes=1).append("review", WHO)
    assert kept in [file.read_bytes() for file in rotated(path)]
    assert before in [file.read_bytes()[: len(before)] for file in rotated(path)]
    assert not verify(path).whole


def test_a_full_file_whose_first_line_is_damaged_keeps_its_place(path):
    fill(path, 3).close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"x" + lines[0][1:] + b"".join(lines[1:]))
    log = AuditLog(path, max_bytes=1)
    for _ in range(3):
        log.append("review", WHO)
    assert [(fault.kind, fault.line) for fault in verify(path).faults] == [("changed", 1)]


@pytest.mark.parametrize("left", [b"", b"no record\n"])
def test_an_empty_or_damaged_full_file_does_not_end_the_log(path, left):
    fill(path, 2).close()
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.with_name("audit.0000000001.jsonl").write_bytes(left)
    AuditLog(path).append("review", WHO)
    assert [record["event"] for record in records(path)] == ["log_started", "review"]


def test_other_files_with_such_a_name_are_no_part_of_the_log(path):
    fill(path, 2)
    path.with_name("audit.².jsonl").write_text("x\n")
    path.with_name("audit.copy.jsonl").write_text("x\n")
    assert verify(path).whole


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_command_that_notes_much_keeps_no_files_open(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_AUDIT", str(tmp_path / "audit.jsonl"))
    note_command(tmp_path, "purge")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        note_command(tmp_path, "purge")
    assert len(os.listdir("/proc/self/fd")) == before
