"""Several processes on one studies folder: nothing that one of them writes is lost, whatever happens to another."""

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore

from lib import shared_table
from lib.datastore import AnomalyLocalDatastore
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.errors import UnknownImage
from lib.shared_table import SharedTable

SCANS = 100
WAIT_S = 240


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "studies").mkdir()
    scan = nib.Nifti1Image(np.arange(16 * 16 * 2, dtype=np.int16).reshape(16, 16, 2), np.eye(4))
    for number in range(SCANS):
        nib.save(scan, tmp_path / "studies" / f"scan{number:03}.nii.gz")
    return tmp_path / "studies"


@pytest.fixture
def store(folder):
    return AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])


class Worker:
    """Another process with a datastore of its own on the folder; ``done`` reads the changes it has made."""

    def __init__(self, folder, name, kind, count=None):
        reading, writing = os.pipe()
        context = multiprocessing.get_context("fork")  # the libraries are loaded already
        self._begin = context.Event()
        self.process = context.Process(target=work, args=(str(folder), name, kind, count, self._begin, writing))
        self.process.start()
        os.close(writing)
        self._lines = os.fdopen(reading)

    def begin(self):
        self._begin.set()

    def done(self, count=None):
        """The numbers of the next ``count`` changes; without it, of all until the process ends."""
        lines = [self._lines.readline() for _ in range(count)] if count else self._lines.readlines()
        return [int(line) for line in lines if line.endswith("\n")]


def work(folder, name, kind, count, begin, out):
    """``infos``: an image information ``name`` of each scan; ``labels``: a label tagged so. No count: on and on."""
    store = AnomalyLocalDatastore(folder, extensions=["*.nii.gz"])
    scans = sorted(store.list_images())
    begin.wait(WAIT_S)
    for number in range(count) if count else itertools.count():
        scan = scans[number % len(scans)]
        if kind == "infos":
            store.update_image_info(scan, {name: number})
        else:
            store.save_label(scan, store.get_image_uri(scan), name, {"number": number})
        os.write(out, b"%d\n" % number)


@pytest.fixture
def worker(folder):
    started = []

    def start(*args):
        started.append(Worker(folder, *args))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


def table(folder):
    return json.loads((folder / "datastore_v2.json").read_text())["objects"]


def test_nothing_is_lost_while_two_processes_and_a_server_write(folder, store, worker):
    """Each writes 100 infos or labels of the same scans; the server, started before, sees and keeps them all."""
    others = worker("scored", "infos", SCANS), worker("final_anna", "labels", SCANS)
    for other in others:
        other.begin()
    scans = sorted(store.list_images())
    for number, scan in enumerate(scans):
        store.update_image_info(scan, {"server": number})
        store.save_label(scan, store.get_image_uri(scan), "final", {"by": "server"})
    for other in others:
        other.process.join(WAIT_S)
        assert other.process.exitcode == 0

    for now in (store, AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])):
        infos = [now.get_image_info(scan) for scan in scans]
        assert [info["server"] for info in infos] == list(range(SCANS))
        assert [info["scored"] for info in infos] == list(range(SCANS))
        assert [now.get_label_info(scan, "final")["by"] for scan in scans] == ["server"] * SCANS
        assert [now.get_label_info(scan, "final_anna")["number"] for scan in scans] == list(range(SCANS))
        assert now.status()["label_tags"] == {"final": SCANS, "final_anna": SCANS}
    assert table(folder) == store.json()["objects"]


@pytest.mark.parametrize("kind", ["infos", "labels"])
def test_a_process_that_is_killed_leaves_a_whole_table_and_no_lock(folder, store, worker, kind):
    for round_ in range(6):
        other = worker("killed", kind)
        other.begin()
        done = other.done(3)
        time.sleep(0.002 * round_)
        os.kill(other.process.pid, signal.SIGKILL)
        done += other.done()
        objects = table(folder)
        assert len(objects) == SCANS
        for number in done:
            entry = objects[f"scan{number % SCANS:03}"]
            assert entry["image"]["info"]["killed"] >= number if kind == "infos" else "killed" in entry["labels"]
        # The lock of the killed process does not hold up this one.
        store.update_image_info("scan000", {"round": round_})
        assert table(folder)["scan000"]["image"]["info"]["round"] == round_


def test_a_change_of_another_is_seen_at_once_and_without_watching_the_folder(folder, store):
    other = AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])
    for number in range(20):
        other.update_image_info("scan001", {"number": number})
        assert store.get_image_info("scan001")["number"] == number
    other.remove_image("scan002")
    assert "scan002" not in store.list_images()
    with pytest.raises(UnknownImage, match="scan002"):
        store.add_to_image_info("scan002", "anomaly", {"model": {}})


def test_entries_are_added_beside_those_of_another(folder, store):
    other = AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])
    store.add_to_image_info("scan001", "anomaly", {"one": {"score": 1}})
    other.add_to_image_info("scan001", "anomaly", {"two": {"score": 2}})
    store.add_to_image_info("scan001", "anomaly", {"one": {"score": 3}})
    assert other.get_image_info("scan001")["anomaly"] == {"one": {"score": 3}, "two": {"score": 2}}


def test_a_change_that_could_not_be_written_did_not_happen(folder, store, monkeypatch):
    store.update_image_info("scan001", {"kept": True})

    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            store.update_image_info("scan001", {"lost": True})
    assert store.get_image_info("scan001").keys() & {"kept", "lost"} == {"kept"}
    assert table(folder)["scan001"]["image"]["info"]["kept"] is True


def test_a_change_is_on_the_disk_name_and_all_before_it_is_answered(folder, store, monkeypatch):
    """A power cut after a review was answered must not bring the former table back."""
    done, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("name"), rename(source, target))[1])
    monkeypatch.setattr(shared_table, "flush", lambda place: done.append(place))
    store.add_to_image_info("scan000", "review", {"draft": 1})
    assert done[-2:] == ["name", folder]


def test_a_damaged_table_is_kept_beside_the_new_one(folder, store):
    store.update_image_info("scan001", {"kept": True})
    (folder / "datastore_v2.json").write_text('{"name": "cut off')
    assert store.get_image_info("scan001")["kept"] is True
    store.update_image_info("scan002", {"seen": True})
    assert table(folder)["scan001"]["image"]["info"]["kept"] is True
    (aside,) = folder.glob("datastore_v2.json.damaged-*")
    assert aside.read_text() == '{"name": "cut off'


def test_readers_do_not_wait_for_another_process(folder, store):
    other = AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])
    answers = []
    with other._changes:
        reader = threading.Thread(target=lambda: answers.append(len(store.list_images())))
        reader.start()
        reader.join(30)
        assert answers == [SCANS]


def test_every_method_of_monai_label_that_writes_the_table_is_one_change():
    """A method that a later version of MONAI Label adds must not write beside the lock."""
    called = {name: set(method.__code__.co_names) for name, method in vars(LocalDatastore).items() if callable(method)}
    writing = {name for name, names in called.items() if names & {"_update_datastore_file", "_reconcile_datastore"}}
    assert {"add_image", "save_label", "update_image_info", "set_name"} <= writing
    # It does nothing but call another one.
    writing -= {"__init__", "refresh"}
    assert {name for name in writing if name not in vars(SharedTable)} == set()


def test_the_archives_datastore_changes_its_table_the_same_way():
    """Its own methods come first, the shared table right before MONAI Label's folder."""
    order = [one.__name__ for one in AnomalyDICOMWebDatastore.__mro__]
    assert order.index("DICOMWebDatastore") < order.index("SharedTable") == order.index("LocalDatastore") - 1
    assert AnomalyDICOMWebDatastore.update_label_info is not LocalDatastore.update_label_info
