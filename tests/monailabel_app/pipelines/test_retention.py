"""What is old goes, and nothing else: not what is young, in use, of another kind, or behind a link."""

import json
import os
import re
import time
from pathlib import Path

import psutil
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import old_files, retention
from monailabel_app.pipelines.old_files import Wanted

DAY = 86400.0
NOW = time.time()


def put(path: Path, days: float = 30.0, text: str = "brain") -> Path:
    """A file of that age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return path


def age(folder: Path, days: float = 30.0) -> None:
    """A folder and everything in it becomes that old."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            os.utime(path, (NOW - days * DAY, NOW - days * DAY))


@pytest.fixture
def app(tmp_path):
    for name in ("app", "studies", "home", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path / "app"


@pytest.fixture
def folders(app):
    root = app.parent
    return retention.Folders(
        app, root / "studies", root / "home" / "dicom", root / "home" / "sessions", temporary=root / "tmp"
    )


def run(folders, what=("all",), days=7.0, **how):
    results = retention.purge(retention.chosen(folders, what, days), now=NOW, **how)
    return {result.kind: result for result in results}


def everything(folders):
    """One old thing of each kind, by kind."""
    app, archive = folders.app, folders.archive / "0123456789abcdef"
    made = {
        "analyses": put(app / "cache/analyses" / f"{'a' * 64}.safetensors"),
        "evaluation": put(app / "cache/evaluation/analyses/x/one.safetensors"),
        "temporary": put(folders.temporary / "anomaly_map_abcd1234" / "map.nii.gz"),
        "logs": put(app / "logs/app.log.3"),
        "reports": put(app / "runs/scoring/20260101-120000/summary.json"),
        "runs": put(app / "runs/ddpm_t1/20260101-120000/last.safetensors"),
        "prepared": put(app / "cache/prepared/ab/one.safetensors"),
        "archive": put(archive / "1.2.840.1/slice.dcm"),
        "sessions": put(folders.sessions / "01234567-89ab-cdef-0123-456789abcdef" / "scan.nii.gz"),
        "maps": put(folders.studies / "labels/anomaly_map/scan.nii.gz"),
    }
    for folder in (folders.temporary, app / "runs", archive, folders.sessions):
        age(folder)
    return made


def never_among(folders):
    app, archive = folders.app, folders.archive / "0123456789abcdef"
    return [
        put(path, 4000)
        for path in (
            folders.studies / "scan.nii.gz",
            folders.studies / "scan_replaced_0123.nii.gz",
            folders.studies / "labels/final/scan.nii.gz",
            folders.studies / "labels/original/scan.nii.gz",
            folders.studies / "datastore_v2.json",
            archive / "datastore_v2.json",
            archive / "labels/final/1.2.840.1.nii.gz",
            app / "model/ddpm_t1/versions/0001/model.safetensors",
            app / "model/site.key",
            app / "model/tokens.json",
            app / "model_weights/ddpm_t1/model.safetensors",
            app / "logs/app.log",
            app / "logs/audit.jsonl",
            app / "logs/audit.jsonl.1",
            app / "logs/audit.key",
            app / "runs/latest-ddpm",
            app / "runs/notes/own.txt",
            app / "cache/analyses/somebody's.safetensors",
            folders.temporary / "anomaly_results_of_mine" / "table.csv",
            folders.temporary / "anomaly_server_abcd1234" / "alive",
            folders.sessions.parent / "other" / "file",
        )
    ]


def test_there_is_a_place_for_everything_that_shows_patients(folders):
    made = everything(folders)
    assert set(made) == set(retention.kinds(folders))


def test_what_is_old_goes_and_what_is_never_to_go_stays(folders):
    made, kept = everything(folders), never_among(folders)
    for folder in (folders.temporary, folders.sessions.parent / "other"):
        age(folder)
    results = run(folders)
    assert {kind for kind, path in made.items() if not path.exists()} == set(made)
    assert [path for path in kept if not path.exists()] == []
    assert all(result.things == 1 and result.bytes == 5 and not result.failed for result in results.values())


def test_a_dry_run_removes_nothing_and_lists_the_same(folders):
    made = everything(folders)
    listed = []
    results = run(folders, dry_run=True, told=lambda kind, path, days, size: listed.append((kind, path, round(days))))
    assert all(path.exists() for path in made.values())
    assert {kind for kind, _, _ in listed} == set(made)
    assert all(days == 30 for _, _, days in listed)
    assert run(folders) == results


def test_what_is_young_stays(folders):
    made = everything(folders)
    assert not any(result.things for result in run(folders, days=31).values())
    assert all(path.exists() for path in made.values())


def test_a_folder_is_as_old_as_the_youngest_of_its_files(folders):
    report = everything(folders)["reports"]
    put(report.parent / "evaluation.html", days=1)
    assert run(folders, ("reports",))["reports"].things == 0
    assert report.exists()


def test_a_series_of_the_archive_counts_from_its_last_use(folders):
    series = everything(folders)["archive"]
    os.utime(series, (NOW - 2 * DAY, NOW - 30 * DAY))
    os.utime(series.parent, (NOW - 30 * DAY, NOW - 30 * DAY))
    assert run(folders, ("archive",))["archive"].things == 0
    os.utime(series, (NOW - 20 * DAY, NOW - 30 * DAY))
    assert run(folders, ("archive",))["archive"].things == 1


def test_without_a_choice_only_what_can_be_made_again_goes(folders):
    made = everything(folders)
    retention.purge(retention.chosen(folders), now=NOW)
    gone = {kind for kind, path in made.items() if not path.exists()}
    assert gone == {"analyses", "evaluation", "temporary", "archive", "sessions"}


def test_what_users_made_needs_an_age(folders):
    with pytest.raises(InvalidSettings, match="--older-than DAYS"):
        retention.chosen(folders, ["reports"])
    with pytest.raises(InvalidSettings, match=r"expected kinds out of all, analyses.*got 'scans'"):
        retention.chosen(folders, ["scans"])
    with pytest.raises(InvalidSettings, match="between 0 and 36500"):
        retention.chosen(folders, ["reports"], float("nan"))


CACHES, OWN = {"analyses", "evaluation", "archive", "sessions"}, {"temporary", "logs"}


@pytest.mark.parametrize(
    ("conf", "kinds"),
    [
        ({}, CACHES | OWN),
        ({"retention_cache_days": "0"}, OWN),
        ({"retention_cache_days": "0", "retention_days": "90"}, OWN | {"reports", "runs", "prepared", "maps"}),
    ],
)
def test_a_server_purges_what_its_conf_says(folders, conf, kinds):
    assert {place.kind for place in retention.with_conf(retention.places(folders), conf)} == kinds


@pytest.mark.parametrize("text", ["-1", "ten", "nan", "1e9", ""])
def test_an_age_that_is_none_is_refused(folders, text):
    with pytest.raises(InvalidSettings, match="retention_days"):
        retention.with_conf((), {"retention_days": text})


def test_a_link_is_not_followed_out_of_a_folder(folders, tmp_path):
    treasure = put(tmp_path / "elsewhere/evaluation/one.safetensors", 4000)
    age(treasure.parent.parent, 4000)
    cache = folders.app / "cache"
    (cache / "evaluation").mkdir(parents=True)
    (cache / "evaluation/analyses").symlink_to(treasure.parent)
    (cache / "prepared").symlink_to(treasure.parent)
    (folders.app / "runs").mkdir()
    (folders.app / "runs/cohort").symlink_to(treasure.parent)
    (folders.app / "runs/scoring").symlink_to(treasure.parent)
    (cache / "evaluation/file").symlink_to(treasure)
    run(folders)
    assert treasure.read_text() == "brain"


def test_a_link_inside_of_what_goes_is_removed_and_what_it_points_to_is_not(folders, tmp_path):
    treasure = put(tmp_path / "elsewhere/scan.nii.gz", 4000)
    session = everything(folders)["sessions"].parent
    (session / "out").symlink_to(treasure.parent)
    (session / "out.nii.gz").symlink_to(treasure)
    os.utime(session, (NOW - 30 * DAY, NOW - 30 * DAY))
    assert run(folders, ("sessions",))["sessions"].things == 1
    assert not session.exists()
    assert treasure.read_text() == "brain"


def test_a_folder_that_becomes_a_link_between_the_look_and_the_removal_is_not_followed(folders, tmp_path):
    victim = put(tmp_path / "victim/x/one.safetensors", 4000)
    made = everything(folders)["evaluation"]
    wanted = Wanted(re.compile(r"evaluation/.+"))
    (unit,) = old_files.units(folders.app / "cache", wanted)
    made.parent.parent.rename(tmp_path / "aside")
    (folders.app / "cache/evaluation/analyses").symlink_to(victim.parent.parent)
    assert old_files.remove(folders.app / "cache", unit, before=NOW)
    assert victim.exists()
    assert (tmp_path / "aside/x/one.safetensors").exists()


def test_what_was_written_again_since_the_look_stays(folders):
    made = everything(folders)["analyses"]
    (unit,) = old_files.units(made.parent, Wanted(re.compile(r".+")))
    put(made, days=0, text="anew")
    assert not old_files.remove(made.parent, unit, before=NOW - DAY)
    assert made.read_text() == "anew"


def test_a_file_that_somebody_has_open_stays(folders):
    made = everything(folders)["archive"]
    with made.open("rb"):
        if not old_files.open_files():
            pytest.skip("this system does not tell who has which file open")
        result = run(folders, ("archive",))["archive"]
        assert (result.things, result.in_use) == (0, 1)
    assert run(folders, ("archive",))["archive"].things == 1


def test_what_belongs_to_an_image_that_is_being_analysed_stays(folders):
    made = everything(folders)
    results = run(folders, keep={"1.2.840.1", "scan"})
    assert made["archive"].exists()
    assert made["maps"].exists()
    assert results["archive"].in_use == results["maps"].in_use == 1


def test_a_training_that_runs_keeps_its_folder_and_the_prepared_scans(folders):
    made = everything(folders)
    me = psutil.Process()
    progress = {"status": "training", "host": os.uname().nodename, "processes": [[me.pid, me.create_time()]]}
    put(made["runs"].parent / "progress.json", text=json.dumps(progress))
    age(made["runs"].parent)
    results = run(folders)
    assert made["runs"].exists()
    assert made["prepared"].exists()
    assert results["runs"].in_use == 1
    put(made["runs"].parent / "progress.json", text=json.dumps({**progress, "processes": [[me.pid, 1.0]]}))
    age(made["runs"].parent)
    run(folders)
    assert not made["runs"].exists()
    assert not made["prepared"].exists()


def test_no_more_goes_at_once_than_is_allowed(folders):
    for number in range(5):
        put(folders.app / "cache/evaluation" / f"{number}.safetensors")
    assert run(folders, ("evaluation",), most=2)["evaluation"].things == 2
    assert run(folders, ("evaluation",), most=20)["evaluation"].things == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_what_may_not_be_removed_is_counted_and_does_not_stop_the_rest(folders):
    made = everything(folders)
    made["analyses"].parent.chmod(0o500)
    try:
        results = run(folders, ("analyses", "evaluation"))
    finally:
        made["analyses"].parent.chmod(0o700)
    assert (results["analyses"].failed, results["evaluation"].things) == (1, 1)
