"""Back-ups: complete, of one moment, checked, and never put over what is there."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "extras/deploy/backup.py"


@pytest.fixture(scope="module")
def backup():
    spec = importlib.util.spec_from_file_location("anomaly_backup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path):
    app, studies, archive = tmp_path / "app", tmp_path / "studies", tmp_path / "cache"
    for path, text in {
        app / "model/ddpm_t1/0001/model.safetensors": "weights",
        app / "model/ddpm_t1/.lock": "",
        app / "model/ddpm_t1/.placing-1": "half",
        app / "model/tokens.json": "hashes",
        app / "logs/audit.jsonl": "one\n",
        app / "logs/audit.jsonl.head": "1",
        app / "logs/audit.key": "key",
        app / "logs/app.log": "lines",
        app / "cache/analyses/a.safetensors": "cache",
        studies / "datastore_v2.json": "{}",
        studies / "datastore_v2.json.lock": "",
        studies / "scan.nii.gz": "voxels",
        studies / "labels/final/scan.nii.gz": "label",
        studies / "replaced/scan_1/said.json": "{}",
        archive / "0a1b/datastore_v2.json": "{}",
        archive / "0a1b/labels/final/x.nii.gz": "label",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return app, studies, archive


def names(path):
    with tarfile.open(path) as tar:
        return set(tar.getnames())


def texts(*folders):
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folders[0].parent)): path.read_text() for path in files}


def test_what_cannot_be_made_again_is_in_it_and_nothing_else(backup, site, tmp_path):
    target = tmp_path / "b.tar"
    assert backup.make(target, *site, scans=False) == 10
    assert names(target) == {
        "app/model/ddpm_t1/0001/model.safetensors", "app/model/tokens.json",
        "app/logs/audit.jsonl", "app/logs/audit.jsonl.head", "app/logs/audit.key",
        "studies/datastore_v2.json", "studies/labels/final/scan.nii.gz", "studies/replaced/scan_1/said.json",
        "archive/0a1b/datastore_v2.json", "archive/0a1b/labels/final/x.nii.gz", "SHA256SUMS",
    }  # fmt: skip
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_scans_are_in_it_where_they_are_asked_for(backup, site, tmp_path):
    backup.make(tmp_path / "b.tar", *site, scans=True)
    assert "studies/scan.nii.gz" in names(tmp_path / "b.tar")


def test_what_is_put_back_is_what_was_there(backup, site, tmp_path):
    backup.make(tmp_path / "b.tar", *site, scans=True)
    places = [tmp_path / "new" / folder.name for folder in site]
    assert backup.restore(tmp_path / "b.tar", *places) == 11
    before, after = texts(*site), texts(*places)
    assert after == {name: before[name] for name in after}
    assert len(after) == 11
    assert (places[0] / "model").stat().st_mode & 0o777 == 0o700


def test_nothing_that_is_there_is_overwritten(backup, site, tmp_path):
    backup.make(tmp_path / "b.tar", *site, scans=False)
    before = texts(*site)
    (site[0] / "model/ddpm_t1/0001/model.safetensors").unlink()
    with pytest.raises(backup.Refused, match="move them away first"):
        backup.restore(tmp_path / "b.tar", *site)
    del before["app/model/ddpm_t1/0001/model.safetensors"]
    assert texts(*site) == before
    with pytest.raises(backup.Refused, match="exists"):
        backup.make(tmp_path / "b.tar", *site, scans=False)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not a tar"])
def test_a_damaged_backup_is_refused_and_puts_nothing_back(backup, site, tmp_path, damage):
    target = tmp_path / "b.tar"
    backup.make(target, *site, scans=False)
    content = bytearray(target.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[content.index(b"weights")] ^= 1
    else:
        content = b"no tar at all" * 100
    target.write_bytes(content)
    places = [tmp_path / "new" / folder.name for folder in site]
    with pytest.raises(backup.Refused):
        backup.restore(target, *places)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "app/../../evil", "other/evil"])
def test_a_file_that_reaches_out_of_its_place_is_refused(backup, tmp_path, name):
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tmp_path / "evil", "holder")
        entry = tar.gettarinfo(str(tmp_path / "evil"))
        entry.name = name
        tar.addfile(entry, (tmp_path / "evil").open("rb"))
    with pytest.raises(backup.Refused, match="not one of these"):
        backup.restore(tmp_path / "b.tar", tmp_path / "a", tmp_path / "s", tmp_path / "c")


def test_table_and_labels_are_of_one_moment(backup, site, tmp_path):
    """A writer that changes both under the datastore's lock is never seen between the two."""
    _, studies, _ = site
    stop = threading.Event()

    def write():
        for number in range(10_000):
            with (studies / "datastore_v2.json.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name in ("labels/final/scan.nii.gz", "datastore_v2.json"):
                    (studies / ".placing-x").write_text(json.dumps(number))
                    os.replace(studies / ".placing-x", studies / name)
                    stop.wait(0.002)
            if stop.wait(0.001):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for turn in range(4):
            backup.make(tmp_path / f"{turn}.tar", *site, scans=False)
    finally:
        stop.set()
        thread.join()
    for turn in range(4):
        with tarfile.open(tmp_path / f"{turn}.tar") as tar:
            table, label = (
                tar.extractfile(f"studies/{n}").read() for n in ("datastore_v2.json", "labels/final/scan.nii.gz")
            )
        assert table == label or turn == 0


def test_a_lock_that_never_becomes_free_is_an_error_and_leaves_nothing(backup, site, tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "WAIT_SECONDS", 0.1)
    with (site[0] / "model/ddpm_t1/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(backup.Refused, match="in use"):
            backup.make(tmp_path / "b.tar", *site, scans=False)
    assert {path.name for path in tmp_path.iterdir()} == {"app", "studies", "cache"}


def test_the_command_says_what_it_did_and_ends_with_1_where_it_could_not(site, tmp_path):
    app, studies, archive = map(str, site)
    where = ["--app", app, "--studies", studies, "--archive-folder", archive]
    target = str(tmp_path / "b.tar")

    def run(*arguments):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)

    made = run("make", target, *where)
    assert made.returncode == 0
    assert "10 files" in made.stdout
    assert run("verify", target).returncode == 0
    again = run("make", target, *where)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
