"""Values that are kept for a moment: made once, however many ask at once, and gone by themselves."""

import threading
import time

import pytest

from lib.recent import Recent


def test_a_value_is_made_once_for_all_who_ask_at_once():
    recent, made = Recent(2, 60), []
    begun = threading.Event()

    def make():
        made.append(1)
        begun.wait(120)
        return "value"

    answers = []
    threads = [threading.Thread(target=lambda: answers.append(recent.get("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join(120)
    assert (answers, made) == (["value"] * 4, [1])


def test_other_values_do_not_wait_for_one_that_takes_long():
    recent, hold = Recent(2, 60), threading.Event()
    slow = threading.Thread(target=lambda: recent.get("slow", lambda: hold.wait(120)))
    slow.start()
    assert recent.get("quick", lambda: 1) == 1
    hold.set()
    slow.join(120)


def test_the_oldest_leaves_when_there_are_too_many():
    recent = Recent(2, 60)
    for key in "abc":
        recent.get(key, lambda key=key: key)
    assert [recent.peek(key) for key in "abc"] == [None, "b", "c"]


def test_a_value_leaves_by_itself_when_its_time_is_over():
    recent = Recent(2, 0.05)
    recent.get("key", lambda: "value")
    deadline = time.monotonic() + 30
    while len(recent) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(recent) == 0


def test_an_error_is_not_kept_and_reaches_who_asked():
    recent = Recent(2, 60)
    with pytest.raises(ZeroDivisionError):
        recent.get("key", lambda: 1 / 0)
    assert recent.get("key", lambda: 2) == 2
