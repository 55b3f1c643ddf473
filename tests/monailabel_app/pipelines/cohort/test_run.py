"""A cohort is done once: what is current is left out, what has changed is done anew, what fails is told."""

import csv
import os

import pytest

from monailabel_app.errors import InvalidSettings, UnknownModel, UnreadableVolume
from monailabel_app.pipelines.cohort.basis import input_hash, stamp_of
from monailabel_app.pipelines.cohort.journal import FolderInUse, Journal
from monailabel_app.pipelines.cohort.processes import Lost
from monailabel_app.pipelines.cohort.run import MOST_TRIES, Options, run_cohort
from monailabel_app.pipelines.cohort.unit import failed, now, rests_on
from monailabel_app.pipelines.predict import PredictSettings


class Pool:
    """Analyses here, at once; ``answers`` says what becomes of some scans."""

    size = 1

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.seen = []

    def results(self, tasks):
        for task in tasks:
            self.seen.append(task)
            answer = self.answers.get(task.key)
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            if isinstance(answer, Lost):
                yield task, answer
                continue
            stamp = stamp_of(task.path)
            digest = input_hash(task.path) if stamp else ""
            if task.known and task.known == digest:
                yield task, {"scan": task.key, "state": "same", "stamp": stamp}
                continue
            body = (
                failed(answer) if answer is not None else {"state": "analysed", "score": len(task.key), "p_value": 0.5}
            )
            yield task, {
                "scan": task.key, "path": task.path, "sequence": task.sequence, "model": task.model.name, **body,
                "input": digest, **rests_on(task, stamp), "tries": task.before + task.tries + 1, "time": now(),
            }  # fmt: skip


def model(root, name, modality, text="1"):
    folder = root / "model_weights" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"kind: anomaly\nmethod: ddpm\nmodality: {modality}\nconfig: {{}}\n")
    (folder / "calibration.json").write_text("{}")
    (folder / "sha256sums.txt").write_text(f"{text * 64}  config.yaml\n{text * 64}  calibration.json\n")


@pytest.fixture
def place(tmp_path):
    model(tmp_path / "app", "intensity_t1", "t1")
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii", "b_T1w.nii", "c.nii"):
        (scans / name).write_text(name)
    return tmp_path


def go(place, answers=None, **options):
    pool = Pool(answers)
    summary = run_cohort(place / "scans", place / "app", place / "out", lambda: pool, Options(**options))
    return [task.key for task in pool.seen], summary


def test_each_scan_is_noted_once_before_it_counts_as_done_and_what_is_current_is_not(place):
    noted = []

    def note(record):
        held = [(one["scan"], one["state"]) for _, one in Journal(place / "out").records()]
        assert (record["scan"], record["state"]) not in held
        noted.append((record["scan"], record["state"], record.get("kind")))

    lost = {"b_T1w.nii": Lost("WorkerDied", "gone", 3.0, "cpu"), "c.nii": UnreadableVolume("no scan")}
    for pool in (Pool(lost), Pool()):
        run_cohort(place / "scans", place / "app", place / "out", lambda pool=pool: pool, Options(), noted=note)
        os.utime(place / "scans/a.nii", ns=(1, 1))
    assert noted == [
        ("a.nii", "analysed", None), ("b_T1w.nii", "failed", "WorkerDied"), ("c.nii", "failed", "UnreadableVolume"),
        ("b_T1w.nii", "analysed", None),
    ]  # fmt: skip


def table(place):
    with open(place / "out/cohort.csv", newline="") as stream:
        return {row["scan"]: row for row in csv.DictReader(stream)}


def test_a_second_run_has_nothing_to_do(place):
    assert go(place)[0] == ["a.nii", "b_T1w.nii", "c.nii"]
    seen, summary = go(place)
    assert seen == []
    assert (summary.current, summary.analysed, summary.failed) == (3, 0, 0)
    assert set(table(place)) == {"a.nii", "b_T1w.nii", "c.nii"}


def test_the_table_is_sorted_and_the_page_holds_the_rows(place):
    go(place)
    with open(place / "out/cohort.csv", newline="") as stream:
        assert [row["scan"] for row in csv.DictReader(stream)] == ["b_T1w.nii", "a.nii", "c.nii"]
    assert "b_T1w.nii" in (place / "out/cohort.html").read_text()


def test_new_scans_are_done_before_those_that_have_changed(place):
    go(place)
    (place / "scans/a.nii").write_text("another")
    (place / "scans/d.nii").write_text("new")
    assert go(place)[0] == ["d.nii", "a.nii"]


def test_a_file_with_another_date_and_the_same_content_keeps_its_result(place):
    go(place)
    os.utime(place / "scans/a.nii", ns=(1, 1))
    seen, _ = go(place)
    assert seen == ["a.nii"]
    assert float(table(place)["a.nii"]["score"]) == 5
    assert go(place)[0] == []


@pytest.mark.parametrize("change", ["weights", "settings", "again"])
def test_another_model_other_settings_or_the_wish_do_everything_anew(place, change):
    go(place)
    if change == "weights":
        model(place / "app", "intensity_t1", "t1", "2")
    options = {"settings": {"settings": PredictSettings(operating_point="sensitive")}, "again": {"again": True}}
    seen, summary = go(place, **options.get(change, {}))
    assert len(seen) == summary.analysed == 3
    assert len(go(place, **{**options.get(change, {}), "again": False})[0]) == 0


def test_files_that_are_wanted_later_are_made_later(place):
    go(place)
    assert len(go(place, keep="masks")[0]) == 3


def test_a_scan_that_cannot_be_analysed_is_told_and_left_alone(place):
    _, summary = go(place, {"a.nii": UnreadableVolume("cut off")})
    assert (summary.analysed, summary.failed) == (2, 1)
    assert table(place)["a.nii"]["text"] == "cut off"
    assert go(place)[0] == []
    assert go(place, retry_failed=True)[0] == ["a.nii"]
    assert table(place)["a.nii"]["state"] == "analysed"


@pytest.mark.parametrize("fault", [Lost("WorkerDied", "killed", 1.0, "cpu"), ValueError("a fault of ours")])
def test_a_passing_failure_is_tried_again_but_not_for_ever(place, fault):
    for count in range(1, MOST_TRIES + 1):
        seen, _ = go(place, {"a.nii": fault})
        assert ("a.nii" in seen, table(place)["a.nii"]["tries"]) == (True, str(count))
    assert go(place, {"a.nii": fault})[0] == []


def test_a_file_that_is_gone_is_one_failure(place):
    (place / "list.csv").write_text("path\nscans/a.nii\nscans/gone.nii\n")
    pool = Pool({"scans/gone.nii": UnreadableVolume("no such file")})
    summary = run_cohort(place / "list.csv", place / "app", place / "out", lambda: pool, Options())
    assert (summary.analysed, summary.failed) == (1, 1)


def test_a_scan_without_a_model_for_its_sequence_is_listed(place):
    (place / "scans/d_T2w.nii").write_text("d")
    seen, summary = go(place)
    assert "d_T2w.nii" not in seen
    assert (summary.without_model, summary.failed) == (1, 1)
    assert "sequence 't2'" in table(place)["d_T2w.nii"]["text"]


def test_a_baseline_in_place_of_the_model_offered_first_is_told_once(place, caplog):
    caplog.set_level("WARNING")
    go(place, model="intensity_t1")
    assert not [text for text in caplog.messages if "offered first" in text]
    go(place, again=True)
    told = [text for text in caplog.messages if "offered first" in text]
    # Of scans that say t1, and of those that say nothing.
    assert len(told) == 2
    assert all("cold_diffusion_t1, is missing" in text for text in told)


def test_each_sequence_has_its_model(place):
    model(place / "app", "intensity_flair", "flair")
    (place / "scans/d_FLAIR.nii").write_text("d")
    go(place)
    assert {name: row["model"] for name, row in table(place).items()} == {
        "a.nii": "intensity_t1",
        "b_T1w.nii": "intensity_t1",
        "c.nii": "intensity_t1",
        "d_FLAIR.nii": "intensity_flair",
    }
    assert len(go(place, model="intensity_flair")[0]) == 3


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(place):
    with pytest.raises(KeyboardInterrupt):
        go(place, {"b_T1w.nii": KeyboardInterrupt()})
    assert set(table(place)) == {"a.nii"}
    assert go(place)[0] == ["b_T1w.nii", "c.nii"]


def test_a_journal_cut_in_the_middle_of_a_line_costs_that_scan(place):
    go(place)
    journal = place / "out/cohort.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    seen, summary = go(place)
    assert (seen, summary.damaged_lines) == (["c.nii"], 1)
    assert len(table(place)) == 3


def test_a_folder_in_use_is_left_alone(place):
    with Journal(place / "out"), pytest.raises(FolderInUse):
        go(place)


def test_what_cannot_be_is_refused_before_anything_begins(place):
    with pytest.raises(UnknownModel):
        go(place, model="no_such")
    with pytest.raises(InvalidSettings, match="keep"):
        Options(keep="everything")


def test_the_state_is_told(place):
    told = []
    run_cohort(
        place / "scans", place / "app", place / "out", Pool, Options(),
        lambda state: told.append((state.done, state.total, state.failed)),
    )  # fmt: skip
    assert told == [(0, 3, 0), (1, 3, 0), (2, 3, 0), (3, 3, 0)]
