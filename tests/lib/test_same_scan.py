"""A file overwritten by hand: nothing said of the former scan sticks to the new one, and nothing is lost."""

import json
import os
import shutil
import threading
import time

import nibabel as nib
import numpy as np
import pytest

from lib import same_scan
from lib.datastore import AnomalyLocalDatastore
from lib.same_scan import REPLACED_KEY
from lib.scoring.base import keep


def write(path, value, shape=(16, 16, 6)):
    data = np.random.default_rng(value).integers(0, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def ones(path, shape=(16, 16, 6)):
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), path)
    return str(path)


def opened(folder):
    return AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(same_scan, "QUIET_SECONDS", 0.05)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    write(folder / "head.nii.gz", 1)
    write(folder / "other.nii.gz", 2)
    return folder


@pytest.fixture
def said(folder, tmp_path):
    """A datastore in which much has been said of the scan."""
    store = opened(folder)
    store.save_label("head", ones(tmp_path / "label.nii.gz"), "final", {"reader": "anna"})
    store.save_label("head", ones(tmp_path / "label.nii.gz"), "anomaly_map", {})
    keep(store, "head", "review", {"draft": {"reader": "anna"}})
    keep(store, "head", "anomaly", {"model": {"score": 1.0}})
    store.update_image_info("head", {"healthy": False})
    return store


@pytest.fixture(params=["running", "restarted"])
def later(request, folder, said):
    """The same server, or the next one."""
    return (lambda: said) if request.param == "running" else (lambda: opened(folder))


def test_what_was_said_of_the_former_scan_is_put_aside_whole(folder, later):
    write(folder / "head.nii.gz", 3)
    store = later()
    path = store.get_image_uri("head")
    info = store.get_image_info("head")
    assert set(info) == {"ts", "name", "path", REPLACED_KEY}
    assert store.get_labels_by_image_id("head") == {}
    assert int(nib.load(path).dataobj[0, 0, 0]) == int(nib.load(folder / "head.nii.gz").dataobj[0, 0, 0])
    aside = folder / info[REPLACED_KEY]["kept_in"]
    assert {path.name for path in aside.iterdir()} == {"said.json", "final.nii.gz", "anomaly_map.nii.gz"}
    kept = json.loads((aside / "said.json").read_text())
    assert kept["info"]["review"]["draft"]["reader"] == "anna"
    assert kept["info"]["anomaly"]["model"]["score"] == 1.0
    assert kept["info"]["healthy"] is False
    assert kept["labels"]["final"]["reader"] == "anna"
    assert nib.load(aside / "final.nii.gz").shape == (16, 16, 6)
    again = opened(folder)
    assert again.get_labels_by_image_id("head") == {}
    assert set(again.list_images()) == {"head", "other"}


def test_a_file_that_is_touched_or_copied_back_stays_the_same_scan(folder, later):
    os.utime(folder / "head.nii.gz", ns=(1, 1))
    store = later()
    store.get_image_uri("head")
    assert store.get_labels_by_image_id("head").keys() == {"final", "anomaly_map"}
    shutil.copy(folder / "head.nii.gz", folder / "copy")
    os.replace(folder / "copy", folder / "head.nii.gz")
    store.get_image_uri("head")
    assert "review" in store.get_image_info("head")
    assert not (folder / "replaced").exists()


def test_what_is_said_next_is_of_the_new_scan_and_a_second_replacement_keeps_both(folder, said, tmp_path):
    for value in (3, 4):
        write(folder / "head.nii.gz", value)
        said.save_label("head", ones(tmp_path / "label.nii.gz"), "final", {"reader": str(value)})
        assert said.get_labels_by_image_id("head").keys() == {"final"}
        assert said.get_label_info("head", "final")["reader"] == str(value)
    assert len(list((folder / "replaced").iterdir())) == 2


def test_a_scan_of_which_nothing_was_said_may_change(folder):
    store = opened(folder)
    write(folder / "other.nii.gz", 5)
    store.get_image_uri("other")
    assert REPLACED_KEY not in store.get_image_info("other")
    assert not (folder / "replaced").exists()


def test_a_running_server_sees_it_without_being_asked(folder, said):
    watching = AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"], auto_reload=True)
    try:
        content = write(folder.parent / "new.nii.gz", 6).read_bytes()
        (folder / "head.nii.gz").write_bytes(content)
        deadline = time.monotonic() + 120
        while watching.entries()["head"][1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        watching._observer.stop()
        watching._observer.join()


def test_a_scan_that_is_half_copied_is_no_other_scan(folder, said, monkeypatch):
    monkeypatch.setattr(same_scan, "QUIET_SECONDS", 60.0)
    path = folder / "head.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    def go_on():
        path.write_bytes(whole)
        os.utime(path, (1, 1))  # as copying with its dates does at the end

    writer = threading.Timer(0.3, go_on)
    writer.start()
    assert not said.recognise("head")
    writer.join()
    assert set(said.get_labels_by_image_id("head")) == {"final", "anomaly_map"}
    assert said.get_image_info("head")["review"]
    assert not (folder / "replaced").exists()


def test_a_scan_that_goes_on_changing_is_looked_at_again(folder, said, monkeypatch):
    monkeypatch.setattr(same_scan, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(same_scan, "_PATIENCE_SECONDS", 0.1)
    write(folder / "head.nii.gz", 3)
    assert not said.recognise("head")
    assert said.get_labels_by_image_id("head")
    monkeypatch.setattr(same_scan, "QUIET_SECONDS", 0.0)
    assert said.recognise("head")
    assert not said.get_labels_by_image_id("head")
