"""Workers may die, hang or run out of memory: that costs one scan, and the others get their records."""

import multiprocessing
import os
import time

import pytest

from monailabel_app.pipelines.cohort import processes
from monailabel_app.pipelines.cohort.processes import Lane, ProcessPool, WorkersFail

from .fakes import Errand, Obedient, Unable


def pool(workers=2, timeout=60.0, make=Obedient, **more):
    return ProcessPool(make, [Lane("cpu", 1)] * workers, timeout, **more)


def done(keys, workers=2, folder="", **more):
    errands = [Errand(key, str(folder)) for key in keys]
    return {task.key: (task, outcome) for task, outcome in pool(workers, **more).results(iter(errands))}


def children():
    return multiprocessing.active_children()


def test_every_scan_gets_its_record_and_no_process_is_left():
    found = done([f"scan {n}" for n in range(9)], workers=3)
    assert {key: outcome["scan"] for key, (_, outcome) in found.items()} == {f"scan {n}": f"scan {n}" for n in range(9)}
    assert len({outcome["pid"] for _, outcome in found.values()} - {os.getpid()}) in (1, 2, 3)
    assert not children()


def test_workers_have_the_devices_and_threads_of_their_lanes(tmp_path):
    lanes = [Lane("cuda:0", 3), Lane("cuda:1", 5)]
    errands = iter([Errand(f"meet 2 {n}", str(tmp_path)) for n in range(4)])
    found = [outcome for _, outcome in ProcessPool(Obedient, lanes, 60.0).results(errands)]
    assert {(o["device"], o["threads"]) for o in found} == {("cuda:0", "3"), ("cuda:1", "5")}


def test_a_crash_costs_one_scan_which_is_tried_twice():
    found = done(["a", "crash", "b", "leave", "c"])
    assert {key for key, (_, outcome) in found.items() if isinstance(outcome, dict)} == {"a", "b", "c"}
    task, lost = found["crash"]
    assert (lost.kind, task.tries) == ("WorkerDied", 1)
    assert "killed" in lost.text
    assert "exit code 3" in found["leave"][1].text


def test_a_scan_whose_worker_was_killed_once_is_analysed_in_the_end(tmp_path):
    _, outcome = done(["once", "a"], folder=tmp_path)["once"]
    assert outcome["state"] == "analysed"


def test_a_scan_that_hangs_is_given_up_and_its_worker_replaced(tmp_path, monkeypatch):
    """The clock jumps once the scan hangs: with a short time-out a machine that stands still would end the others."""
    began, now, wait = time.monotonic(), time.monotonic, processes.connection.wait
    hangs = tmp_path / "hangs"
    monkeypatch.setattr(processes.time, "monotonic", lambda: now() + (1000.0 if hangs.exists() else 0.0))
    monkeypatch.setattr(processes.connection, "wait", lambda ends, timeout: wait(ends, min(timeout, 0.1)))
    found = done(["hang", "a", "b"], workers=1, timeout=900.0, folder=tmp_path)
    monkeypatch.undo()
    assert found["hang"][1].kind == "TimedOut"
    assert found["hang"][0].tries == 0
    assert found["b"][1]["state"] == "analysed"
    assert time.monotonic() - began < 300


def test_a_worker_without_memory_is_replaced():
    found = done(["a", "memory", "b"], workers=1)
    assert found["memory"][1].kind == "OutOfMemory"
    assert "no more of it" in found["memory"][1].text
    assert found["a"][1]["pid"] != found["b"][1]["pid"]


def test_a_worker_ends_after_so_many_scans():
    found = done([f"scan {n}" for n in range(4)], workers=1, scans_per_worker=2)
    assert len({outcome["pid"] for _, outcome in found.values()}) == 2


def test_workers_that_cannot_begin_stop_the_run():
    with pytest.raises(WorkersFail, match="one after the other"):
        list(pool(1, make=Unable).results(iter([Errand(f"scan {n}") for n in range(50)])))
    assert not children()


def test_leaving_early_ends_all_workers_at_once():
    results = pool(2).results(iter([Errand("a"), Errand("hang"), Errand("hang 2")]))
    task, _ = next(results)
    assert task.key == "a"
    began = time.monotonic()
    results.close()
    assert not children()
    assert time.monotonic() - began < 60


def test_no_more_scans_are_taken_than_there_are_workers():
    taken = []

    def errands():
        for number in range(20):
            taken.append(number)
            yield Errand(f"scan {number}")

    for done_so_far, _ in enumerate(pool(2).results(errands()), 1):
        assert len(taken) <= done_so_far + 2
