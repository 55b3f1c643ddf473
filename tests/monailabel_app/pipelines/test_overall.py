import itertools

import pytest

from monailabel_app.pipelines import overall as module
from monailabel_app.pipelines.overall import ROUGH, Overall, StageTimes


@pytest.fixture
def clock(monkeypatch):
    now = {"s": 100.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["s"])
    return now


def test_the_whole_follows_what_the_stages_took_last_time():
    whole = Overall({"preparing": 1.0, "network": 8.0, "writing": 1.0})
    assert whole.tell("preparing", 0.5) == pytest.approx(0.05)
    assert whole.tell("network", 0.0) == pytest.approx(0.1)
    assert whole.tell("network", 0.5) == pytest.approx(0.5)
    assert whole.tell("writing", 0.0) == pytest.approx(0.9)


def test_it_never_falls_and_is_not_whole_before_the_end():
    whole = Overall(ROUGH)
    told = [("reading", 0), ("reconstruction", 0.9), ("alignment", 0.1), ("reconstruction", 0.2), ("unknown", 1.0)]
    shares = [whole.tell(*one) for one in told] + [whole.tell("writing", 1.0), whole.tell("again", 7.0)]
    assert all(a <= b for a, b in itertools.pairwise(shares))
    assert shares[-1] < 1
    whole.end()
    assert whole.share == 1


def test_an_unknown_stage_moves_through_what_is_left():
    whole = Overall({"network": 1.0})
    assert whole.tell("repeats", 0.0) == 0
    assert whole.tell("repeats", 0.5) == pytest.approx(0.45)
    assert whole.tell("repeats", 1.0) == pytest.approx(0.9)


def test_the_seconds_of_a_stage_that_comes_back_are_added(clock):
    whole = Overall({})
    for stage, seconds in (("a", 1), ("b", 2), ("a", 4)):
        whole.tell(stage, 0)
        clock["s"] += seconds
    assert whole.end() == {"a": 5, "b": 2}


def test_times_are_kept_per_kind_of_work_and_bounded():
    times = StageTimes()
    assert times.of("ddpm") == ROUGH
    times.keep("ddpm", {"network": 3})
    assert times.of("ddpm") == {"network": 3}
    assert times.of("intensity") == ROUGH
    for number in range(100):
        times.keep(number, {"network": 1})
    assert times.of("ddpm") == ROUGH
    assert times.of(99) == {"network": 1}
