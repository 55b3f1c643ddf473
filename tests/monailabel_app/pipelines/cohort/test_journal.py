"""cohort.jsonl survives what kills the run, and belongs to one run at a time."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from monailabel_app.pipelines.cohort.journal import FolderInUse, Journal

ROOT = Path(__file__).resolve().parents[4]


def written(folder, *records):
    with Journal(folder) as journal:
        return [journal.append({"scan": record, "state": "analysed"}) for record in records]


def read(folder):
    with Journal(folder) as journal:
        return [record["scan"] for _, record in journal.records()], journal.damaged


def test_records_come_back_in_their_order(tmp_path):
    written(tmp_path / "new", "ä/1.nii.gz", "b")
    written(tmp_path / "new", "c")
    assert read(tmp_path / "new") == (["ä/1.nii.gz", "b", "c"], 0)


def test_a_folder_without_a_journal_has_no_records(tmp_path):
    assert read(tmp_path) == ([], 0)


@pytest.mark.parametrize("cut", [1, 2, 10, 30])
def test_a_line_cut_short_is_passed_over_and_the_next_is_whole(tmp_path, cut):
    written(tmp_path, "a", "b")
    journal = tmp_path / "cohort.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    lost = cut > 1  # without its line break alone it still is a record
    written(tmp_path, "c")
    assert read(tmp_path) == (["a", "c"] if lost else ["a", "b", "c"], int(lost))
    assert all(line for line in journal.read_bytes().split(b"\n")[:-1])


def test_zeros_and_words_that_a_broken_disk_leaves_are_passed_over(tmp_path):
    written(tmp_path, "a")
    with open(tmp_path / "cohort.jsonl", "ab") as stream:
        stream.write(b"\0\0\0\0\n[1, 2]\n\xff\xfe\n\n")
    written(tmp_path, "b")
    assert read(tmp_path) == (["a", "b"], 3)


def test_a_record_is_found_again_by_its_place(tmp_path):
    places = written(tmp_path, "a", "b")
    with Journal(tmp_path) as journal:
        assert [place for place, _ in journal.records()] == places
        assert journal.at(places[1])["scan"] == "b"
        with pytest.raises(OSError, match="changed"):
            journal.at(places[1] + 3)


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    with Journal(tmp_path), pytest.raises(FolderInUse, match="another run"), Journal(tmp_path):
        pass
    assert read(tmp_path) == ([], 0)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append({"scan": "a", "score": float("nan")})
    assert json.loads((tmp_path / "cohort.jsonl").read_text())["score"] is None


def test_what_was_appended_before_a_kill_is_there_and_the_folder_is_free_again(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from monailabel_app.pipelines.cohort.journal import Journal
        with Journal(Path(sys.argv[1])) as journal:
            number = 0
            while True:
                journal.append({"scan": str(number), "text": "x" * 5000})
                number += 1
                print(number, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for _ in range(5):
        told = process.stdout.readline()
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    count = int((rest or [told])[-1])
    assert count >= 5
    records, damaged = read(tmp_path)
    assert records[:count] == [str(number) for number in range(count)]
    assert damaged <= 1
    written(tmp_path, "next")
    assert read(tmp_path)[0][-1] == "next"
