"""Checking a log takes no more memory and no longer for what is in it."""

import tracemalloc

import pytest

from monailabel_app.audit.record import Tail, line_of, make_record
from monailabel_app.audit.verify import Numbers, verify

WHO = {"name": "anna", "role": "reader", "how": "token"}
TIME = "2026-05-01T00:00:00.000+00:00"


def chain(count, after=Tail()):
    for _ in range(count):
        record = make_record(after, "review", WHO, "ok", {}, time=TIME)
        after = Tail(record["sequence"], record["hash"])
        yield line_of(record)


def peak(path):
    tracemalloc.start()
    try:
        report = verify(path)
        return report, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(chain(4000)))
    report, taken = peak(path)
    assert report.whole
    assert report.records == 4000
    assert taken < 60_000


def test_lines_that_are_none_are_counted_and_not_kept(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(chain(2)) + b"?\n" * 5000 + b"torn")
    report, taken = peak(path)
    assert {fault.kind for fault in report.faults} == {"changed"}
    assert taken < 60_000


def test_what_a_number_far_away_leaves_out_is_not_gone_through(tmp_path):
    path = tmp_path / "audit.jsonl"
    first = b"".join(chain(3))
    path.write_bytes(first + b"".join(chain(2, Tail(10**12, "1" * 64))))
    report = verify(path)
    assert [fault.kind for fault in report.faults] == ["removed"]


@pytest.mark.parametrize("order", [[1, 2, 3, 7, 5, 6], [7, 6, 5, 3, 2, 1], [5, 1, 3, 2, 7, 6]])
def test_numbers_know_what_was_seen(order):
    numbers = Numbers()
    for number in order:
        numbers.add(number)
    assert [number for number in range(9) if number in numbers] == sorted(order)
    assert numbers.first(4, 9) == 5
    assert numbers.first(4, 5) is None
    assert numbers.first(8, 99) is None
    assert len(numbers) == 2
