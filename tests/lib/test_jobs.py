"""Jobs with stand-ins for the analyses: what becomes of each, in which order, and what is told of it."""

import logging
import threading
import time

import pytest

from lib import line as line_module
from lib.access.principal import ADMIN, READER, Principal, acting, current
from lib.errors import NotAllowed, ServerBusy, UnknownJob
from lib.jobs import Jobs, Plan
from lib.line import Lines
from monailabel_app.errors import Cancelled, InvalidSettings, UnknownModel
from monailabel_app.pipelines.pace import Pace

SECRET = "MILLER^ANNA"


class Stage:
    """An analysis in the hands of the test: it goes on when the test says so, and tells what the test tells."""

    def __init__(self):
        self.lines = Lines()
        self.order, self.jobs = [], None
        self._held = {}
        self.over = threading.Event()  # the test is over with this server: its threads are to end

    def __call__(self, job):
        with self.lines.device(job.plan.device):
            self.order.append(job.image)
            told = self._held.setdefault(job.image, [])
            seen = 0
            while not self.over.is_set():
                while seen < len(told):
                    word = told[seen]
                    seen += 1
                    if isinstance(word, Exception):
                        raise word
                    if word == "end":
                        return
                    job.tell(*word)
                job.tell("reconstruction", 0.0)
                time.sleep(0.002)

    def say(self, image, *words):
        self._held.setdefault(image, []).extend(words)


@pytest.fixture(autouse=True)
def _nobody_loses_a_turn(monkeypatch):
    """On a machine that stands still for seconds a thread on its way to its place would: that has a test of its own."""
    monkeypatch.setattr(line_module, "PATIENCE_SECONDS", 600.0)


@pytest.fixture
def stage():
    return Stage()


def make(stage, **limits):
    def check(image, model, params):
        if model == "unknown":
            raise UnknownModel("no model 'unknown'; available: one")
        device = str(params.get("device", "cpu"))
        return Plan(device, equal=f"{image} {model} {sorted(params.items())}", cost=(model,), result=f"/r/{image}")

    return Jobs(stage.lines, check, stage, **limits)


@pytest.fixture
def jobs(stage):
    made = make(stage)
    yield made
    assert made.close(120)


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def state(jobs, job):
    return jobs.get(job.id)["state"]


def test_a_job_waits_runs_and_is_done(jobs, stage):
    first, second = jobs.submit("a", "one", {}), jobs.submit("b", "one", {"seed": 3})
    until(lambda: state(jobs, first) == "running")
    waits = jobs.get(second.id)
    assert (waits["state"], waits["position"], waits["progress"], waits["started"]) == ("queued", 1, None, None)
    assert waits["params"] == {"seed": 3}
    runs = jobs.get(first.id)
    assert (runs["position"], runs["finished"], runs["result"]) == (0, None, None)
    assert jobs.waiting() == 1
    assert jobs.working() == {"a": "running", "b": "queued"}
    stage.say("a", "end")
    stage.say("b", "end")
    until(lambda: state(jobs, second) == "done")
    over = jobs.get(first.id)
    assert (over["state"], over["position"], over["progress"], over["error"]) == ("done", None, 1.0, None)
    assert over["result"] == "/r/a"
    assert over["created"] <= over["started"] <= over["finished"]
    assert over["seconds"] >= 0
    assert [one["image"] for one in jobs.listing()] == ["b", "a"]
    assert jobs.working() == {}


def test_progress_grows_through_the_stages(jobs, stage):
    job = jobs.submit("a", "one", {})
    shares = []
    for word in (("brain extraction", 0.0), ("reconstruction", 0.1), ("reconstruction", 0.6), ("writing", 0.5)):
        stage.say("a", word)
        until(lambda: jobs.get(job.id)["progress"] not in (None, *shares))
        shares.append(jobs.get(job.id)["progress"])
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_a_job_is_done_when_its_files_are_written_and_not_when_the_library_is(jobs, stage):
    job = jobs.submit("a", "one", {})
    stage.say("a", ("post-processing", 0.0), ("done", 1.0), ("writing", 0.0))
    until(lambda: jobs.get(job.id)["stage"] in {"writing", "reconstruction"})
    assert jobs.get(job.id)["state"] == "running"
    stage.say("a", "end")
    until(lambda: jobs.get(job.id)["stage"] == "done")
    assert state(jobs, job) == "done"


def test_jobs_and_requests_stand_in_one_line(jobs, stage):
    first = jobs.submit("a", "one", {})
    until(lambda: state(jobs, first) == "running")
    second = jobs.submit("b", "one", {})
    started = threading.Event()

    def request():
        with jobs.record("infer", "one", "c", plan=Plan("cpu")) as job:
            started.set()
            stage.say("c", "end")
            stage(job)

    thread = threading.Thread(target=request)
    thread.start()
    assert started.wait(120)
    third = jobs.submit("d", "one", {})
    positions = {one["image"]: one["position"] for one in jobs.listing()}
    assert positions == {"a": 0, "b": 1, "c": 2, "d": 3}
    for image in "abd":
        stage.say(image, "end")
    until(lambda: state(jobs, third) == "done")
    thread.join(120)
    assert stage.order == ["a", "b", "c", "d"]
    assert state(jobs, second) == "done"


def test_each_device_has_its_own_worker(jobs, stage):
    on_cpu = jobs.submit("a", "one", {})
    on_gpu = jobs.submit("b", "one", {"device": "cuda:1"})
    until(lambda: state(jobs, on_cpu) == state(jobs, on_gpu) == "running")
    assert jobs.get(on_gpu.id)["position"] == 0


def test_equal_jobs_are_joined_until_they_are_over(jobs, stage):
    first = jobs.submit("a", "one", {})
    assert jobs.submit("a", "one", {}) is first
    until(lambda: state(jobs, first) == "running")
    assert jobs.submit("a", "one", {}) is first
    assert jobs.submit("a", "one", {"seed": 1}) is not first
    stage.say("a", "end")
    until(lambda: state(jobs, first) == "done")
    assert jobs.submit("a", "one", {}) is not first
    assert stage.order[0] == "a"


def test_a_job_that_is_being_cancelled_is_not_joined(jobs, stage):
    first = jobs.submit("a", "one", {})
    until(lambda: state(jobs, first) == "running")
    jobs.cancel(first.id)
    assert jobs.submit("a", "one", {}) is not first


def test_a_waiting_job_is_cancelled_at_once_and_the_others_move_up(jobs, stage):
    a, b, c = (jobs.submit(image, "one", {}) for image in "abc")
    until(lambda: state(jobs, a) == "running")
    answer = jobs.cancel(b.id)
    assert (answer["state"], answer["position"]) == ("cancelled", None)
    assert "waited" in answer["error"]
    assert jobs.get(c.id)["position"] == 1
    stage.say("a", "end")
    stage.say("c", "end")
    until(lambda: state(jobs, c) == "done")
    assert stage.order == ["a", "c"]


def test_a_running_job_stops_at_its_next_progress_and_the_device_is_free(jobs, stage):
    job, next_one = jobs.submit("a", "one", {}), jobs.submit("b", "one", {})
    until(lambda: state(jobs, job) == "running")
    assert jobs.cancel(job.id)["stage"] in {"stopping", "cancelled"}
    until(lambda: state(jobs, job) == "cancelled")
    over = jobs.get(job.id)
    assert "while it ran" in over["error"]
    assert over["result"] is None
    assert over["seconds"] is not None
    until(lambda: state(jobs, next_one) == "running")
    assert jobs.cancel(job.id)["state"] == "cancelled"


def test_a_request_that_is_cancelled_while_it_waits_ends_with_cancelled(jobs, stage):
    first = jobs.submit("a", "one", {})
    until(lambda: state(jobs, first) == "running")
    ended = []

    def request():
        try:
            with jobs.record("infer", "one", "", plan=Plan("cpu")) as job:
                stage(job)
        except Cancelled as error:
            ended.append(str(error))

    thread = threading.Thread(target=request)
    thread.start()
    until(lambda: jobs.waiting() == 1)
    waits = jobs.listing(states=("queued",))[0]
    jobs.cancel(waits["id"])
    thread.join(120)
    assert ended == ["cancelled while it waited for its turn"]
    assert jobs.get(waits["id"])["state"] == "cancelled"
    assert jobs.waiting() == 0


def test_a_request_that_waits_when_the_server_ends_is_told_so(stage):
    jobs, ended = make(stage), []
    first = jobs.submit("a", "one", {})
    until(lambda: state(jobs, first) == "running")

    def request():
        try:
            with jobs.record("infer", "one", "", plan=Plan("cpu")) as job:
                stage(job)  # where the line itself ends the waiting, and nobody is asked meanwhile
        except Cancelled as error:
            ended.append(str(error))

    thread = threading.Thread(target=request)
    thread.start()
    until(lambda: jobs.waiting() == 1)
    assert jobs.close(120)
    thread.join(120)
    assert ended == ["the server is shutting down"]
    assert {job["error"] for job in jobs.listing()} == {"the server is shutting down"}


def test_errors_are_told_and_the_next_job_runs(jobs, stage, caplog):
    stage.say("a", InvalidSettings("expected a scan of T1"))
    stage.say("b", ValueError(f"odd value in {SECRET}"))
    stage.say("c", "end")
    failed, broken, fine = (jobs.submit(image, "one", {}) for image in "abc")
    until(lambda: state(jobs, fine) == "done")
    assert jobs.get(failed.id)["state"] == "failed"
    assert jobs.get(failed.id)["error"] == "expected a scan of T1"
    assert jobs.get(broken.id)["state"] == "failed"
    assert "failed with ValueError" in caplog.text
    assert SECRET not in caplog.text
    with pytest.raises(UnknownModel, match="available: one"):
        jobs.submit("a", "unknown", {})


def test_a_full_queue_turns_jobs_away_and_says_when_to_come_back(stage):
    jobs = make(stage, max_queued=2)
    running = jobs.submit("a", "one", {})
    until(lambda: state(jobs, running) == "running")
    jobs.submit("b", "one", {})
    last = jobs.submit("c", "one", {})
    with pytest.raises(ServerBusy, match="2 jobs are waiting") as caught:
        jobs.submit("d", "one", {})
    assert 2 <= caught.value.retry_after <= 300
    assert jobs.submit("c", "one", {}) is last
    jobs.cancel(last.id)
    assert state(jobs, jobs.submit("d", "one", {})) == "queued"
    assert jobs.close(120)


def test_only_so_many_finished_jobs_are_kept_and_not_for_ever(stage, monkeypatch):
    jobs = make(stage, kept=3, kept_seconds=1000)
    done = []
    for number in range(5):
        stage.say(str(number), "end")
        done.append(jobs.submit(str(number), "one", {}))
        until(lambda: done[-1].over)
    until(lambda: len(jobs.listing()) == 3)
    assert [one["image"] for one in jobs.listing()] == ["4", "3", "2"]
    with pytest.raises(UnknownJob, match="over since long"):
        jobs.get(done[0].id)
    runs = jobs.submit("runs", "one", {})
    until(lambda: state(jobs, runs) == "running")
    later = time.monotonic() + 1001
    monkeypatch.setattr("lib.jobs.time.monotonic", lambda: later)
    assert [one["image"] for one in jobs.listing()] == ["runs"]
    monkeypatch.undo()
    assert jobs.close(120)


def test_when_the_server_ends_everything_is_cancelled_and_nothing_new_begins(stage):
    jobs = make(stage)
    running, waiting = jobs.submit("a", "one", {}), jobs.submit("b", "one", {})
    until(lambda: state(jobs, running) == "running")
    assert jobs.close(120)
    assert "shutting down" in jobs.get(running.id)["error"]
    assert state(jobs, waiting) == "cancelled"
    with pytest.raises(ServerBusy, match="shutting down"):
        jobs.submit("c", "one", {})
    assert stage.order == ["a"]


def test_workers_do_not_keep_a_process_from_ending(jobs, stage):
    job = jobs.submit("a", "one", {})
    until(lambda: state(jobs, job) == "running")
    workers = [thread for thread in threading.enumerate() if thread.name == "jobs on cpu"]
    assert workers
    assert all(thread.daemon for thread in workers)


def test_the_list_can_be_narrowed(jobs, stage):
    for image in "ab":
        jobs.submit(image, "one", {})
    until(lambda: jobs.working().get("a") == "running")
    assert [one["image"] for one in jobs.listing(image="b")] == ["b"]
    assert [one["image"] for one in jobs.listing(states=("running",))] == ["a"]
    assert jobs.listing(image="b", states=("running",)) == []


def test_the_log_names_stages_and_never_a_scan(jobs, stage, caplog, monkeypatch):
    monkeypatch.setattr("lib.job.Pace", lambda: Pace(600.0))  # a line is due at no moment of a test that stands still
    caplog.set_level(logging.INFO)
    stage.say(SECRET, *[("reconstruction", share / 1000) for share in range(1000)], ("writing", 0.0), "end")
    job = jobs.submit(SECRET, "one", {"label_tag": SECRET})
    until(lambda: state(jobs, job) == "done")
    lines = [record.getMessage() for record in caplog.records if record.name == "lib.jobs"]
    assert [line.split(": ")[1] for line in lines[:3]] == ["started with one on cpu", "reconstruction", "writing"]
    assert len(lines) <= 6
    assert SECRET not in caplog.text


def test_many_threads_at_once_leave_a_true_table(stage):
    jobs = make(stage, max_queued=1000, kept=1000)
    for image in range(60):
        stage.say(str(image), "end")

    def use(number):
        for image in range(number, 60, 6):
            job = jobs.submit(str(image), "one", {"device": f"cuda:{image % 3}"})
            jobs.listing()
            if image % 5 == 0:
                jobs.cancel(job.id)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    until(lambda: all(one["state"] in {"done", "cancelled"} for one in jobs.listing()))
    listed = jobs.listing()
    assert len(listed) == 60
    assert {one["image"] for one in listed if one["state"] == "cancelled"} <= {str(i) for i in range(0, 60, 5)}
    assert sorted(stage.order) == sorted(set(stage.order))
    assert jobs.waiting() == 0


def test_a_job_is_done_in_the_name_of_who_submitted_it_and_cancelled_by_them_or_an_admin(jobs, stage):
    anna, bert = Principal("anna", READER, "token"), Principal("bert", READER, "token")
    names = []
    jobs._work = lambda job: (names.append(current().name), stage(job))
    with acting(anna):
        runs, waits, last = (jobs.submit(image, "one", {}) for image in "abc")
    until(lambda: state(jobs, runs) == "running")
    with acting(bert), pytest.raises(NotAllowed, match="somebody else"):
        jobs.cancel(waits.id)
    assert state(jobs, waits) == "queued"
    with acting(Principal("anna", READER, "cookie")):
        assert jobs.cancel(waits.id)["state"] == "cancelled"
    with acting(Principal("carla", ADMIN, "token")):
        assert jobs.cancel(last.id)["state"] == "cancelled"
    assert names == ["anna"]
    assert current().name == "server"


def test_each_of_several_persons_gets_a_job_done_in_turn(jobs, stage):
    anna, bert = Principal("anna", READER, "token"), Principal("bert", READER, "token")
    with acting(anna):
        of_anna = [jobs.submit(f"a{number}", "one", {}) for number in range(4)]
    until(lambda: state(jobs, of_anna[0]) == "running")
    with acting(bert):
        of_bert = [jobs.submit(f"b{number}", "one", {}) for number in range(2)]
    positions = {job["image"]: job["position"] for job in jobs.listing()}
    assert positions == {"a0": 0, "a1": 1, "b0": 2, "a2": 3, "b1": 4, "a3": 5}
    for job in (*of_anna, *of_bert):
        stage.say(job.image, "end")
    until(lambda: all(job.over for job in (*of_anna, *of_bert)))
    assert stage.order == ["a0", "a1", "b0", "a2", "b1", "a3"]


def test_those_who_are_turned_away_are_told_different_times(stage):
    jobs = make(stage, max_queued=1)
    running = jobs.submit("a", "one", {})
    until(lambda: state(jobs, running) == "running")
    jobs.submit("b", "one", {})
    told = []
    for number in range(4):
        with pytest.raises(ServerBusy) as caught:
            jobs.submit(f"c{number}", "one", {})
        told.append(caught.value.retry_after)
    assert told == sorted(told)
    assert told[0] + 60 < told[3] <= 300
    assert jobs.close(120)


def test_a_job_that_hangs_is_silent_until_it_tells_something(monkeypatch):
    """Silent from when it began or last told; what waits or is over is not."""
    going, now = threading.Event(), [1000.0]
    told = threading.Event()

    def work(job):
        with lines.device("cpu"):
            job.tell("reconstruction", 0.1)
            told.set()
            going.wait(240)

    lines = Lines()
    jobs = Jobs(lines, lambda image, model, params: Plan("cpu", equal=image), work)
    monkeypatch.setattr("lib.jobs.time.monotonic", lambda: now[0])
    first, waits = jobs.submit("a", "one", {}), jobs.submit("b", "one", {})
    assert told.wait(120)
    now[0] += 600.0
    assert [(round(silent), job.id) for silent, job in jobs.silent()] == [(600, first.id)]
    first.tell("reconstruction", 0.1)
    assert [round(silent) for silent, _ in jobs.silent()] == [0]
    jobs.cancel(waits.id)
    going.set()
    monkeypatch.undo()
    until(lambda: first.over)
    assert jobs.silent() == []
    assert jobs.close(120)
