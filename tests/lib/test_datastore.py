"""The studies folder without a server: what is hard to provoke over HTTP."""

import gzip
import threading
from pathlib import Path

import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.errors import InvalidRequest, UnknownImage


@pytest.fixture
def store(tmp_path):
    return AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii", "*.nrrd"])


def files(store):
    return {path.name for path in store_path(store).rglob("*.nii*")}


def store_path(store):
    return Path(store._datastore_path)


def test_a_label_saved_as_another_type_replaces_the_former(store, lesion_scan, lesion_mask, tmp_path):
    store.add_image("a", str(lesion_scan), {})
    store.save_label("a", str(lesion_mask), "final", {})
    other = tmp_path / "mask.nii"
    other.write_bytes(gzip.decompress(lesion_mask.read_bytes()))
    store.save_label("a", str(other), "final", {})
    assert store.get_label_uri("a", "final").endswith("final/a.nii")
    assert [path.name for path in (store_path(store) / "labels" / "final").iterdir()] == ["a.nii"]


def test_removing_an_image_removes_its_labels_at_once(store, lesion_scan, lesion_mask):
    store.add_image("a", str(lesion_scan), {})
    store.save_label("a", str(lesion_mask), "final", {})
    store.remove_image("a")
    assert store.list_images() == []
    assert files(store) == set()


def test_the_same_id_with_another_type_leaves_no_second_file(store, healthy_scan, lesion_scan, tmp_path):
    store.add_image("a", str(healthy_scan), {})
    other = tmp_path / "b.nii"
    other.write_bytes(gzip.decompress(lesion_scan.read_bytes()))
    store.add_image("a", str(other), {})
    (kept,) = (name for name in store.list_images() if name != "a")
    assert files(store) == {"a.nii", f"{kept}.nii.gz"}


def test_what_is_not_there_is_said(store):
    with pytest.raises(UnknownImage, match="'a'"):
        store.get_image_uri("a")
    with pytest.raises(UnknownImage, match="final"):
        store.remove_label("a", "final")
    with pytest.raises(InvalidRequest, match=r"\.nii\.gz"):
        store.add_image("a", "/tmp/x.png", {})


def test_requests_do_not_disturb_each_other(store, healthy_scan, lesion_mask):
    """Readers, writers and the folder's watcher at the same time; every change is kept."""
    store.add_image("first", str(healthy_scan), {})
    failures, done = [], threading.Event()

    def repeat(action):
        try:
            while not done.is_set():
                action()
        except Exception as error:
            failures.append(error)

    readers = [store.status, store.json, store.get_unlabeled_images, store.refresh]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in readers]
    for thread in threads:
        thread.start()
    for number in range(15):
        store.add_image(f"scan {number}", str(lesion_mask), {})
        store.save_label(f"scan {number}", str(lesion_mask), "final", {"number": number})
        store.update_image_info(f"scan {number}", {"seen": True})
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.list_images()) == 16
    assert [store.get_label_info(f"scan {n}", "final")["number"] for n in range(15)] == list(range(15))
    assert all(store.get_image_info(f"scan {n}")["seen"] for n in range(15))
