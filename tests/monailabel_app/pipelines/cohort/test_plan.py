"""Workers for the machine that is there, and what they would take for more scans."""

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.cohort import plan
from monailabel_app.pipelines.cohort.estimate import estimates
from monailabel_app.pipelines.cohort.processes import Lane
from monailabel_app.pipelines.cohort.progress import State, duration


@pytest.fixture
def machine(monkeypatch):
    def be(cores, gib, gpus=0):
        monkeypatch.setattr(plan, "available_cores", lambda: cores)
        monkeypatch.setattr(plan, "available_gib", lambda: gib)
        monkeypatch.setattr("monailabel_app.pipelines.cohort.plan.torch.cuda.device_count", lambda: gpus)

    return be


@pytest.mark.parametrize(
    ("cores", "gib", "workers", "threads"), [(2, 20, 1, 2), (16, 128, 8, 2), (64, 16, 4, 16), (1, 1, 1, 1)]
)
def test_on_the_cpu_cores_and_memory_decide(machine, cores, gib, workers, threads):
    machine(cores, gib)
    assert plan.lanes() == [Lane("cpu", threads)] * workers


def test_every_gpu_has_a_worker(machine):
    machine(16, 128, gpus=2)
    assert plan.lanes() == [Lane("cuda:0", 8), Lane("cuda:1", 8)]
    assert plan.lanes(devices="cuda:1") == [Lane("cuda:1", 16)]
    assert [lane.device for lane in plan.lanes(4, "cuda")] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert plan.lanes(3, "cpu") == [Lane("cpu", 5)] * 3


@pytest.mark.parametrize("wrong", [{"devices": "cuda:7"}, {"devices": ""}, {"workers": 0}, {"devices": "cuda"}])
def test_what_the_machine_does_not_have_is_refused(machine, wrong):
    machine(4, 16)
    with pytest.raises(InvalidSettings):
        plan.lanes(**{"workers": None, "devices": "auto", **wrong})


def analysed(total, model="a", worker="node cpu", **more):
    return {"state": "analysed", "model": model, "worker": worker, "seconds": {"total": total, **more}}


def test_the_cost_is_the_mean_of_what_was_measured_without_loading():
    records = [analysed(34.0, load_model=4.0), analysed(42.0), {"state": "failed", "seconds": {"total": 1.0}}]
    (one,) = estimates(records, 100_000)
    assert one.per_hour == pytest.approx(100.0)
    assert one.worker_days == pytest.approx(100_000 / 100 / 24)
    assert "100,000 scans: 41.7 worker-days" in one.lines()[1]
    assert "4 workers: 10.4 days" in one.lines()[1]


def test_models_and_kinds_of_devices_are_told_apart():
    found = estimates([analysed(10.0), analysed(1.0, worker="node cuda:0"), analysed(1.0, worker="node cuda:1"),
                       analysed(5.0, "b")])  # fmt: skip
    assert [(one.model, one.device, one.measured) for one in found] == [
        ("a", "cpu", 1),
        ("a", "cuda", 2),
        ("b", "cpu", 1),
    ]


def test_nothing_measured_gives_no_estimate():
    with pytest.raises(InvalidSettings, match="run `cohort`"):
        estimates([{"state": "failed"}])


def test_the_speed_is_that_of_the_last_scans(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("monailabel_app.pipelines.cohort.progress.time.monotonic", lambda: clock[0])
    state = State(total=2000, began=0.0)
    assert (state.per_hour, state.seconds_left) == (None, None)
    for number in range(600):
        clock[0] += 36.0 if number < 300 else 3.6
        state.finished(number == 0)
    assert state.per_hour == pytest.approx(1000)
    assert state.seconds_left == pytest.approx(1400 * 3.6)
    assert state.sentence() == "1 failed, 1000 scans/h, 84 min left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (40, "40 s"), (720, "12 min"), (19080, "5.3 h"), (276480, "3.2 days")]
)
def test_times_are_told_in_fitting_units(seconds, text):
    assert duration(seconds) == text
