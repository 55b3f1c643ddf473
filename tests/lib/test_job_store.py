"""Jobs that were taken outlive the server: they are queued again, in their submitter's name, and not for ever."""

import json
import stat
import threading

import pytest

from lib.access.principal import READER, Principal, acting, current
from lib.job_store import JobStore
from lib.jobs import MOST_ATTEMPTS
from tests.lib.test_jobs import Stage, _nobody_loses_a_turn, make, state, until  # noqa: F401

ANNA = Principal("anna", READER, "token")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "jobs.json"


def kept(path):
    return [record["image"] for record in json.loads(path.read_text())["jobs"]]


class Life:
    """A server from its start to its end: jobs with stand-ins for the analyses."""

    def __init__(self, path):
        self.stage, self.store = Stage(), JobStore(path)
        self.jobs = make(self.stage)
        self.queued = self.jobs.keep_in(self.store)

    def submit(self, *images):
        with acting(ANNA):
            return [self.jobs.submit(image, "one", {"seed": 1}) for image in images]

    def end(self):
        """In good order."""
        assert self.jobs.close(120)
        self.store.close()

    def die(self):
        """At once: nobody writes or lets go of anything; the lock goes with the process."""
        with self.jobs._lock:  # a worker that is writing has written; from now on none does
            self.store.put = self.store.drop = self.store.change_attempts = lambda *given: None
            self.store.close()
        self.stage.over.set()


def test_queued_jobs_of_a_server_that_was_killed_are_done_after_its_restart(path):
    before = Life(path)
    runs, waits, last = before.submit("a", "b", "c")
    until(lambda: state(before.jobs, runs) == "running")
    before.jobs.cancel(last.id)
    assert kept(path) == ["a", "b"]
    before.die()

    after = Life(path)
    assert after.queued == 2
    listed = {job["id"]: job for job in after.jobs.listing()}
    assert set(listed) == {runs.id, waits.id}
    assert listed[waits.id]["params"] == {"seed": 1}
    assert listed[waits.id]["created"] == before.jobs.get(waits.id)["created"]
    for image in "ab":
        after.stage.say(image, "end")
    until(lambda: after.jobs.get(waits.id)["state"] == "done")
    assert after.stage.order == ["a", "b"]
    assert kept(path) == []
    after.end()


def test_two_jobs_that_have_become_one_are_done_once_and_not_again_after_each_restart(path):
    before = Life(path)
    (first,) = before.submit("a")
    before.die()
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "jobs": [*told["jobs"], {**told["jobs"][0], "id": "second"}]}))

    after = Life(path)
    assert after.queued == 1
    assert after.jobs.get("second")["state"] == "failed"
    assert first.id in after.jobs.get("second")["error"]
    after.stage.say("a", "end")
    until(lambda: after.jobs.get(first.id)["state"] == "done")
    assert after.stage.order == ["a"]
    assert kept(path) == []
    after.end()


def test_work_goes_on_in_the_name_of_who_submitted_it(path):
    before = Life(path)
    before.submit("a")
    before.die()
    after, names = Life(path), []
    after.jobs._work = lambda job: names.append(current())
    after.end()
    after = Stage()
    jobs = make(after)
    jobs._work = lambda job: names.append(current())
    jobs.keep_in(JobStore(path))
    until(lambda: names)
    assert names[-1] == ANNA
    assert jobs.close(120)


def test_a_server_that_ends_in_good_order_leaves_its_jobs_to_the_next_and_that_is_no_attempt(path):
    for _ in range(MOST_ATTEMPTS + 2):
        life = Life(path)
        (job,) = life.submit("a")
        until(lambda job=job, life=life: life.jobs.get(job.id)["state"] == "running")
        life.end()
    assert [record["attempts"] for record in json.loads(path.read_text())["jobs"]] == [0]


def test_a_job_that_kills_the_server_is_not_begun_for_ever(path):
    ids = set()
    for _ in range(MOST_ATTEMPTS):
        life = Life(path)
        (job,) = life.submit("a")
        ids.add(job.id)
        until(lambda job=job, life=life: life.jobs.get(job.id)["state"] == "running")
        life.die()
    assert len(ids) == 1
    last = Life(path)
    assert last.queued == 0
    over = last.jobs.get(ids.pop())
    assert over["state"] == "failed"
    assert f"ended {MOST_ATTEMPTS} times" in over["error"]
    assert kept(path) == []
    last.end()


def test_what_cannot_be_done_any_more_is_listed_as_failed_with_the_reason(path):
    before = Life(path)
    with acting(ANNA):
        job = before.jobs.submit("a", "one", {})
    before.die()
    content = path.read_text().replace('"model": "one"', '"model": "unknown"')
    path.write_text(content)
    after = Life(path)
    assert after.jobs.get(job.id)["error"] == "no model 'unknown'; available: one"
    after.end()


def test_the_file_is_its_owner_s_and_holds_no_more_than_was_sent(path):
    life = Life(path)
    life.submit("a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (record,) = json.loads(path.read_text())["jobs"]
    assert set(record) == {"id", "image", "model", "params", "created", "attempts", "principal"}
    life.end()  # the job may have been begun meanwhile, which is written, too
    assert [name.name for name in path.parent.iterdir() if name.name.startswith(".")] == []


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", '{"format": 9, "jobs": []}', '{"format": 1, "jobs": [{"id": 3}]}']
)
def test_a_damaged_file_does_not_keep_the_server_from_starting(path, content):
    path.parent.mkdir()
    path.write_text(content)
    life = Life(path)
    assert life.queued == 0
    life.submit("a")
    assert kept(path) == ["a"]
    life.end()


def test_a_second_server_on_the_same_folder_gets_no_jobs_and_writes_none(path):
    first = Life(path)
    first.submit("a")
    second = Life(path)
    assert second.queued == 0
    second.submit("b")
    assert kept(path) == ["a"]
    second.end()
    first.end()


def test_a_folder_that_cannot_be_written_is_said_once_and_jobs_are_done_all_the_same(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where a folder should be")
    life = Life(tmp_path / "cache" / "jobs.json")
    jobs = life.submit("a", "b")
    for image in "ab":
        life.stage.say(image, "end")
    until(lambda: all(job.over for job in jobs))
    assert caplog.text.count("cannot be kept on the disk") == 1
    life.end()


def test_many_submissions_at_once_are_all_kept(path):
    life = Life(path)
    threads = [threading.Thread(target=life.submit, args=(f"i{number}",)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(kept(path)) == sorted(f"i{number}" for number in range(24))
    life.end()
