"""One line per device: first come first served, and nobody is forgotten in it."""

import threading
import time

import pytest

from lib import line as line_module
from lib.errors import ServerBusy
from lib.line import Lines
from monailabel_app.errors import Cancelled


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def _nobody_loses_a_turn(monkeypatch):
    """On a machine that stands still for seconds a thread on its way to its place would: that has a test of its own."""
    monkeypatch.setattr(line_module, "PATIENCE_SECONDS", 600.0)


class Waiter:
    """A thread that wants a device, holds it until ``let_go``, and notes what became of it."""

    def __init__(self, lines, name, order, place=None):
        self.gone, self.error = threading.Event(), None
        self._thread = in_thread(lambda: self._run(lines, name, order, place))

    def _run(self, lines, name, order, place):
        try:
            if place is not None:
                with lines.standing(place):
                    self._hold(lines, name, order, place.device)
            else:
                self._hold(lines, name, order, "cpu")
        except Cancelled as error:
            self.error = error

    def _hold(self, lines, name, order, device):
        with lines.device(device):
            order.append(name)
            self.gone.wait(240)

    def let_go(self):
        self.gone.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


def test_requests_and_jobs_are_served_in_the_order_in_which_they_came():
    lines, order = Lines(), []
    first = Waiter(lines, "request 1", order)
    until(lambda: order == ["request 1"])
    job = lines.enter("cpu", threaded=False)
    late = Waiter(lines, "request 2", order)
    until(lambda: lines.waiting == 1)
    assert lines.ahead(job) == 0
    worker = Waiter(lines, "job", order, job)
    first.let_go()
    until(lambda: len(order) == 2)
    worker.let_go()
    until(lambda: len(order) == 3)
    late.let_go()
    assert order == ["request 1", "job", "request 2"]


def test_many_at_once_keep_their_order_and_never_share_the_device():
    lines, inside, most, served = Lines(max_waiting=100), 0, 0, []
    lock = threading.Lock()
    places = [lines.enter("cpu", threaded=False) for _ in range(40)]

    def work(number):
        nonlocal inside, most
        with lines.standing(places[number]), lines.device("cpu"):
            with lock:
                inside += 1
                most = max(most, inside)
                served.append(number)
            time.sleep(0.0005)
            with lock:
                inside -= 1

    threads = [in_thread(lambda n=n: work(n)) for n in reversed(range(40))]
    for thread in threads:
        thread.join(120)
    assert most == 1
    assert served == list(range(40))


def test_positions_count_those_that_wait_before():
    lines, order = Lines(), []
    holder = Waiter(lines, "holder", order)
    until(lambda: order)
    places = [lines.enter("cpu", threaded=False) for _ in range(3)]
    other = lines.enter("cuda:0", threaded=False)
    assert [lines.ahead(place) for place in places] == [0, 1, 2]
    assert lines.ahead(other) == 0
    lines.leave(places[0])
    lines.leave(places[0])
    assert [lines.ahead(place) for place in places] == [0, 0, 1]
    holder.let_go()


def test_one_that_is_cancelled_while_waiting_leaves_and_holds_nobody_up():
    lines, order = Lines(), []
    holder = Waiter(lines, "holder", order)
    until(lambda: order)
    place = lines.enter("cpu")
    cancelled = Waiter(lines, "cancelled", order, place)
    next_one = Waiter(lines, "next", order)
    until(lambda: lines.waiting == 2)
    lines.cancel(place)
    cancelled.let_go()
    assert isinstance(cancelled.error, Cancelled)
    holder.let_go()
    until(lambda: order == ["holder", "next"])
    next_one.let_go()
    assert lines.waiting == 0


def test_a_scan_that_takes_long_to_fetch_does_not_keep_the_device_idle(monkeypatch):
    monkeypatch.setattr(line_module, "PATIENCE_SECONDS", 0.3)
    lines, order = Lines(), []
    began = time.monotonic()
    fetching = lines.enter("cpu")
    ready = Waiter(lines, "ready", order)
    until(lambda: order == ["ready"])
    assert time.monotonic() - began >= 0.3
    fetched = Waiter(lines, "fetched", order, fetching)
    ready.let_go()
    until(lambda: order == ["ready", "fetched"])
    fetched.let_go()


def test_too_many_waiting_requests_are_turned_away_and_jobs_do_not_count():
    lines, order = Lines(max_waiting=1), []
    holder = Waiter(lines, "holder", order)
    until(lambda: order)
    for _ in range(5):
        lines.enter("cpu", threaded=False)
    lines.enter("cpu")
    with pytest.raises(ServerBusy, match="1 analyses are waiting for cpu already"):
        lines.enter("cpu")
    assert lines.waiting == 1
    holder.let_go()


def test_what_is_asked_while_waiting_can_end_the_waiting():
    lines, order = Lines(), []
    holder = Waiter(lines, "holder", order)
    until(lambda: order)

    def ask():
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"), lines.device("cpu", ask):
        pass
    assert lines.waiting == 0
    holder.let_go()


def test_in_its_place_a_thread_gets_the_device_once_and_then_lines_up_again():
    lines = Lines()
    place = lines.enter("cpu")
    with lines.standing(place):
        with lines.device("cpu"):
            assert place.holds
            with lines.device("cpu"):
                assert place.holds
        assert place.over
        with lines.device("cpu"), lines.device("cuda:0"):
            assert lines.waiting == 0
    with lines.device("cpu"):
        pass


def test_a_place_is_given_up_when_the_work_fails_before_the_device_is_asked_for():
    lines = Lines()
    place = lines.enter("cpu")
    with pytest.raises(ValueError, match="no such file"), lines.standing(place):
        raise ValueError("no such file")
    with lines.device("cpu"):
        assert lines.waiting == 0


def served(lines, *, device="cpu"):
    """Who is served in which order, with nobody coming meanwhile."""
    order = []
    while lines._lines.get(device):
        place = next(place for place in lines._order(device))
        with lines.standing(place), lines.device(device):
            order.append(place.name)
    return order


def named(lines, name, *, threaded=False, owner="anna"):
    place = lines.enter("cpu", threaded=threaded, owner=owner)
    place.name = name
    return place


def test_a_person_with_many_jobs_does_not_make_another_wait_for_all_of_them():
    lines = Lines()
    for number in range(5):
        named(lines, f"anna {number}")
    named(lines, "bert 0", owner="bert")
    named(lines, "bert 1", owner="bert")
    last = named(lines, "carla 0", owner="carla")
    assert lines.ahead(last) == 2
    assert served(lines) == [
        "anna 0", "bert 0", "carla 0", "anna 1", "bert 1", "anna 2", "anna 3", "anna 4",
    ]  # fmt: skip


def test_who_comes_later_does_not_get_the_turns_that_others_had():
    lines = Lines()
    for number in range(3):
        named(lines, f"anna {number}")
        assert served(lines) == [f"anna {number}"]
    for number in range(2):
        named(lines, f"anna {number}")
        named(lines, f"bert {number}", owner="bert")
    assert served(lines) == ["anna 0", "bert 0", "anna 1", "bert 1"]


def test_a_request_waits_for_one_queued_job_at_most_and_lets_one_pass():
    lines = Lines()
    for number in range(3):
        named(lines, f"job {number}")
    first, second = (named(lines, f"request {number}", threaded=True) for number in range(2))
    late = named(lines, "late job")
    assert [lines.ahead(place) for place in (first, second, late)] == [1, 2, 5]
    assert served(lines) == ["job 0", "request 0", "request 1", "job 1", "job 2", "late job"]


def test_jobs_do_not_starve_while_requests_keep_coming():
    lines, order = Lines(), []
    for number in range(3):
        named(lines, f"job {number}")
    for number in range(12):
        if number < 9:
            named(lines, f"request {number}", threaded=True)
        place = lines._order("cpu")[0]
        with lines.standing(place), lines.device("cpu"):
            order.append(place.name)
    assert order.index("job 2") < 6
    assert [name for name in order if name.startswith("request")] == [f"request {number}" for number in range(9)]


def test_a_job_that_a_worker_stands_in_is_not_overtaken_by_a_later_one():
    lines, order = Lines(), []
    holding = Waiter(lines, "request", order)
    until(lambda: order == ["request"])
    for number in range(4):
        named(lines, f"anna {number}")
    called = lines._order("cpu")[1]
    lines.leave(called)
    lines.leave(lines._order("cpu")[1])
    called = lines._order("cpu")[1]
    waits = Waiter(lines, "called", order, called)
    until(lambda: called.since is not None)
    other = named(lines, "bert", owner="bert")
    assert (lines.ahead(called), lines.ahead(other)) == (0, 1)
    holding.let_go()
    until(lambda: order == ["request", "called"])
    waits.let_go()
