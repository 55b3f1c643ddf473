"""A job is in the figures before anybody is told that it is over."""

from lib import metrics
from lib.jobs import Jobs, Plan
from lib.line import Lines


def test_who_sees_that_a_job_is_over_finds_it_in_the_figures(monkeypatch):
    told = []
    monkeypatch.setattr(metrics, "count_job", lambda kind, outcome: told.append((outcome, jobs.listing()[0]["state"])))
    lines = Lines()
    jobs = Jobs(lines, lambda image, model, params: Plan("cpu"), lambda job: None)
    with jobs.record("infer", "one", "a", plan=Plan("cpu")), lines.device("cpu"):
        pass
    assert jobs.listing()[0]["state"] == "done"
    assert told == [("done", "running")]
