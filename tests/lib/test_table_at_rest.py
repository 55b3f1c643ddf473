"""What is asked while somebody changes the table is answered at once, with all that was acknowledged and no more."""

import json
import os
import threading
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.healthy import abnormal_scans, info_counts
from lib.table_at_rest import at_rest

WAIT_S = 120


def open_store(folder):
    return AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])


@pytest.fixture
def store(tmp_path):
    (tmp_path / "studies").mkdir()
    for number in range(3):
        values = np.arange(16 * 16 * 2, dtype=np.int16).reshape(16, 16, 2)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "studies" / f"scan{number}.nii.gz")
    store = open_store(tmp_path / "studies")
    store.update_image_info("scan0", {"healthy": True})
    return store


def submit(store, image, marked, tag="final"):
    values = np.zeros((16, 16, 2), np.uint8)
    values[:marked] = 1
    path = os.path.join(os.path.dirname(store.get_image_uri(image)), "..", "label.nii.gz")
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return store.save_label(image, path, tag, {})


def counts(store):
    """As /info/ counts."""
    datastore = at_rest(store)
    told = info_counts(datastore, {}, store.status(), False)
    return {**told, "abnormal": abnormal_scans(datastore)}


@contextmanager
def change_under_way(store):
    """Another thread is in the middle of a change that it has not written yet; None where there is none."""
    within, leave = threading.Event(), threading.Event()

    def change():
        with store._changes:
            store._datastore.objects["scan1"].image.info["healthy"] = True
            del store._datastore.objects["scan2"]
            within.set()
            leave.wait(WAIT_S)
            store._distrust()

    thread = threading.Thread(target=change)
    thread.start()
    assert within.wait(WAIT_S)
    try:
        yield
    finally:
        leave.set()
        thread.join(WAIT_S)


def test_counts_do_not_wait_for_a_change_and_tell_what_was_acknowledged(store):
    submit(store, "scan0", 2)
    before = counts(store)
    assert before["total"] == 3
    assert before["abnormal"] == {"scan0"}
    with change_under_way(store):
        answers = []
        asking = threading.Thread(target=lambda: answers.append(counts(store)), daemon=True)
        asking.start()
        asking.join(WAIT_S / 2)
        assert answers == [before], "it waited for the change, or told of what was not written"


def test_what_was_written_is_seen_although_the_next_change_is_under_way(store):
    store.update_image_info("scan1", {"healthy": True})
    submit(store, "scan2", 1)
    with change_under_way(store):
        told = []
        asking = threading.Thread(target=lambda: told.append(counts(store)), daemon=True)
        asking.start()
        asking.join(WAIT_S / 2)
        assert told
        assert told[0]["healthy"]["scans"] == 2
        assert told[0]["abnormal"] == {"scan2"}


def test_the_counts_are_those_of_the_table_itself(store):
    submit(store, "scan1", 3)
    submit(store, "scan2", 0)
    status = super(type(store).__mro__[1], store).status()
    straight = {**info_counts(store, {}, status, True), "abnormal": abnormal_scans(store)}
    datastore = at_rest(store)
    assert {**info_counts(datastore, {}, datastore.status(), True), "abnormal": abnormal_scans(datastore)} == straight
    assert straight["healthy"]["by_reason"]
    assert straight["abnormal"] == {"scan1"}


def test_another_processs_change_is_seen(store):
    counts(store)
    other = open_store(os.path.dirname(store.get_image_uri("scan0")))
    for healthy in (True, False, True):
        other.update_image_info("scan1", {"healthy": healthy})
        assert counts(store)["healthy"]["scans"] == 1 + healthy
    other.remove_image("scan1")
    assert counts(store)["total"] == 2


def test_a_label_that_changes_by_hand_is_counted_anew_at_the_next_look(store, tmp_path):
    submit(store, "scan1", 0)
    assert counts(store)["abnormal"] == set()
    label = store.get_label_uri("scan1", "final")
    nib.save(nib.Nifti1Image(np.ones((16, 16, 2), np.uint8), np.eye(4)), label)
    assert counts(store)["abnormal"] == {"scan1"}


def test_a_change_that_could_not_be_written_is_not_told(store, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="no space"):
                store.update_image_info("scan1", {"healthy": True})
        assert counts(store)["healthy"]["scans"] == 1


def test_within_a_first_change_it_is_the_table_as_it_is_being_changed(tmp_path):
    store = open_store(tmp_path)
    (tmp_path / "datastore_v2.json").unlink(missing_ok=True)
    with store._changes:
        assert at_rest(store) is store
        assert store.status()["total"] == 0


def test_nothing_can_be_changed_through_it(store):
    datastore = at_rest(store)
    with pytest.raises(RuntimeError, match="looking only"):
        datastore.update_image_info("scan1", {"healthy": True})
    with pytest.raises(RuntimeError, match="looking only"):
        datastore.remove_image("scan1")
    path = os.path.join(os.path.dirname(store.get_image_uri("scan0")), "datastore_v2.json")
    with open(path, encoding="utf-8") as table:
        assert "healthy" not in json.load(table)["objects"]["scan1"]["image"]["info"]
