"""The tables of a cohort: in order, safe to open, and cheap however many scans there are."""

import csv
import html
import json
import re

from monailabel_app.pipelines.cohort.tables import TableWriter, ranked, row_of, write_tables


def record(scan, score=None, p_value=None, **more):
    return {
        "scan": scan,
        "state": "analysed" if score is not None else "failed",
        "score": score,
        "p_value": p_value,
        **more,
    }


def rows(*records):
    return [row_of(one) for one in records]


def csv_rows(folder):
    with open(folder / "cohort.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def page_rows(folder):
    text = (folder / "cohort.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="rows">(.*?)</script>', text, re.DOTALL)[1])


def test_the_lowest_p_comes_first_then_the_highest_score_and_failures_last():
    made = rows(record("z"), record("low", 3.0, 0.9), record("b", 2.0, 0.05), record("a", 9.0, 0.05), record("y"))
    assert [row.scan for row in ranked(made)] == ["a", "b", "low", "y", "z"]


def test_both_tables_have_every_scan(tmp_path):
    write_tables(tmp_path, rows(record("a", 1.0, 0.5), record("ü", error="cut off", kind="X")), "Cohort", ["a note"])
    assert [(row["rank"], row["scan"], row["text"]) for row in csv_rows(tmp_path)] == [
        ("1", "a", ""),
        ("", "ü", "cut off"),
    ]
    assert [row[0] for row in page_rows(tmp_path)] == ["a", "ü"]
    assert "a note" in (tmp_path / "cohort.html").read_text()


def test_flags_are_told_with_their_reason():
    gate = {"passed": False, "reasons": ["no skull", "other"]}
    row = row_of(record("a", 1.0, 0.5, gate=gate, drift={"drifted": True}, flagged=True, seconds={"total": 3.0}))
    assert (row.gate, row.drift, row.flagged, row.text, row.seconds) == (True, True, True, "no skull", 3.0)


def test_a_record_with_little_in_it_is_a_row():
    assert row_of({"scan": "a"}).state == "failed"


def test_names_cannot_break_the_page_nor_become_formulas(tmp_path):
    names = ["</script><script>alert(1)</script>", "=1+1", "<b>"]
    write_tables(tmp_path, rows(*(record(name, 1.0, 0.5) for name in names)), "<i>", ["<u>"])
    text = (tmp_path / "cohort.html").read_text()
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert "<u>" not in text
    assert {row[0] for row in page_rows(tmp_path)} == set(names)
    assert {row["scan"] for row in csv_rows(tmp_path)} == {names[0], "'=1+1", "<b>"}


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path):
    write_tables(tmp_path, rows(record("a", 1.0, 0.5)), "Cohort")
    text = html.unescape((tmp_path / "cohort.html").read_text())
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)


def test_nothing_is_left_half_written(tmp_path):
    write_tables(tmp_path, rows(record("a", 1.0, 0.5)), "Cohort")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort.csv", "cohort.html"]


class Clock:
    """Writing takes a second per 1000 rows."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_writing_takes_a_small_share_of_the_time_however_many_rows(tmp_path, monkeypatch):
    clock, spent = Clock(), []

    def slow(folder, all_rows, *rest):
        cost = len(list(all_rows)) / 1000
        spent.append(cost)
        clock.now += cost

    monkeypatch.setattr("monailabel_app.pipelines.cohort.tables.write_tables", slow)
    writer = TableWriter(tmp_path, "Cohort", clock=clock)
    held = []
    for number in range(20_000):
        held.append(number)
        clock.now += 1.0
        writer.maybe(held, list)
    assert 0.01 < sum(spent) / clock.now < 0.03


def test_a_small_cohort_is_written_every_ten_seconds(tmp_path):
    clock = Clock()
    writer = TableWriter(tmp_path, "Cohort", clock=clock)
    written = []
    for second in range(1, 31):
        clock.now = float(second)
        written.append(writer.maybe(rows(record("a", 1.0, 0.5)), list))
    assert [second for second, was in enumerate(written, 1) if was] == [10, 20, 30]
