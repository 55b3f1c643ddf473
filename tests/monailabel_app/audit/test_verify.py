"""No byte of the log can be changed, and no record taken, put in or moved, without being told."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monailabel_app.audit import AuditLog
from monailabel_app.audit.facts import clean, keyed
from monailabel_app.audit.record import Tail, line_of, make_record, read_line
from monailabel_app.audit.search import NoAuditKey, find, moment
from monailabel_app.audit.verify import NoAuditLog, verify

WHO = {"name": "anna", "role": "reader", "how": "token"}
LINES = 8


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A log, its lines, and what is beside it."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    log = AuditLog(path)
    for number in range(LINES - 1):
        log.append("analysis", WHO, facts={"image": f"scan{number}", "seconds": number / 3, "settings": {"seed": 0}})
    log.close()
    return path, path.read_bytes()


def changed(written, tmp_path_factory, content, head=True):
    path, _ = written
    copy = tmp_path_factory.mktemp("copy") / path.name
    copy.write_bytes(content)
    if head:
        copy.with_name("audit.jsonl.head").write_bytes(path.with_name("audit.jsonl.head").read_bytes())
    return copy


def test_a_log_nobody_touched_is_whole(written):
    report = verify(written[0])
    assert report.whole
    assert report.records == LINES
    assert verify(written[0], head=report.head.hash).whole


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_any_byte_is_told(written, tmp_path_factory, data):
    content = written[1]
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    copy = changed(written, tmp_path_factory, content[:place] + bytes([value]) + content[place + 1 :], head=False)
    assert not verify(copy).whole


@pytest.mark.slow
def test_every_single_bit_of_the_log_counts(written, tmp_path_factory):
    content = bytearray(written[1])
    copy = changed(written, tmp_path_factory, content, head=False)
    for place, bit in itertools.product(range(len(content)), range(8)):
        content[place] ^= 1 << bit
        copy.write_bytes(content)
        assert not verify(copy).whole, (place, bit)
        content[place] ^= 1 << bit


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 4000), length=st.integers(1, 900), put=st.binary(max_size=60))
def test_any_piece_taken_out_or_replaced_is_told(written, tmp_path_factory, start, length, put):
    content = written[1]
    other = content[:start] + put + content[start + length :]
    if other != content:
        assert not verify(changed(written, tmp_path_factory, other)).whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(LINES)))
def test_any_other_order_of_the_records_is_told(written, tmp_path_factory, order):
    lines = written[1].splitlines(keepends=True)
    report = verify(changed(written, tmp_path_factory, b"".join(lines[number] for number in order)))
    assert report.whole == (list(order) == list(range(LINES)))


def kinds(report):
    return {fault.kind for fault in report.faults}


def test_the_kind_of_a_break_is_named(written, tmp_path_factory):
    lines = written[1].splitlines(keepends=True)

    def of(*parts, head=True):
        return verify(changed(written, tmp_path_factory, b"".join(itertools.chain(*parts)), head=head))

    report = of(lines[:3], [lines[3].replace(b"reader", b"admin_")], lines[4:])
    assert kinds(report) == {"changed"}
    assert report.faults[0].line == 4
    assert "record 4" in report.faults[0].text
    report = of(lines[:3], lines[4:])
    assert kinds(report) == {"removed"}
    assert "record 4 " in report.faults[0].text
    assert kinds(of(lines[:3], [b"{}\n"], lines[3:])) == {"inserted"}
    assert kinds(of(lines[:3], [lines[1]], lines[3:])) == {"inserted"}
    assert kinds(of(lines[:3], [lines[4], lines[3]], lines[5:])) == {"reordered"}
    assert kinds(of(lines[:5])) == {"truncated"}
    assert kinds(of(lines[2:])) == {"removed"}
    assert kinds(of([])) == {"truncated"}


def test_a_cut_off_end_without_its_head_needs_a_hash_from_elsewhere(written, tmp_path_factory):
    lines = written[1].splitlines(keepends=True)
    copy = changed(written, tmp_path_factory, b"".join(lines[:-2]), head=False)
    blind = verify(copy)
    assert blind.whole
    assert "only --head" in blind.notes[0]
    assert kinds(verify(copy, head=verify(written[0]).head.hash)) == {"truncated"}


def test_a_chain_made_anew_is_told_by_its_head(written, tmp_path_factory):
    lines = written[1].splitlines(keepends=True)
    records = [read_line(line) for line in lines]
    tail, forged = Tail(), []
    for record in records:
        who = {**record["who"], "name": "berta"} if record["sequence"] == 5 else record["who"]
        made = make_record(tail, record["event"], who, record["outcome"], record["facts"], time=record["time"])
        forged.append(line_of(made))
        tail = Tail(made["sequence"], made["hash"])
    assert kinds(verify(changed(written, tmp_path_factory, b"".join(forged)))) == {"changed"}
    anchored = verify(changed(written, tmp_path_factory, b"".join(forged), head=False), head=records[-1]["hash"])
    assert kinds(anchored) == {"truncated"}


def test_a_record_replaced_by_a_valid_one_is_told(written, tmp_path_factory):
    lines = written[1].splitlines(keepends=True)
    before, record = read_line(lines[2]), read_line(lines[3])
    made = make_record(Tail(3, before["hash"]), "analysis", {**WHO, "name": "berta"}, "ok", record["facts"])
    report = verify(changed(written, tmp_path_factory, b"".join([*lines[:3], line_of(made), *lines[4:]])))
    assert kinds(report) == {"changed"}


def test_no_log_is_said(tmp_path):
    with pytest.raises(NoAuditLog, match="--log"):
        verify(tmp_path / "audit.jsonl")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=6))
def test_any_facts_become_a_line_that_is_read_again(facts):
    record = make_record(Tail(), "analysis", WHO, "ok", clean(facts, b"k" * 32))
    assert read_line(line_of(record)) == record


@given(st.text(min_size=1))
def test_text_is_never_written_under_a_name_for_ids(text):
    assert clean({"image": text}, b"k" * 32) == {"image": keyed(b"k" * 32, text)}


def test_records_are_found_by_scan_person_event_and_time(written):
    path, _ = written
    assert [record["sequence"] for record in find(path, image="scan3")] == [5]
    assert len(find(path, who="anna", event="analysis")) == LINES - 1
    assert [record["sequence"] for record in find(path, most=2)] == [LINES - 1, LINES]
    assert find(path, since=moment("1h"))
    assert not find(path, until=moment("2020-01-01"))


def test_a_scan_cannot_be_looked_for_without_the_key(written, tmp_path_factory):
    with pytest.raises(NoAuditKey, match=r"audit\.key"):
        find(changed(written, tmp_path_factory, written[1]), image="scan3")
