"""A batch over a studies folder: what is current is left out, one bad scan costs itself, all devices work."""

import csv
import json
import threading

import nibabel as nib
import numpy as np
import pytest

from lib import batch as module
from lib import options
from lib.access.principal import Principal, acting, current
from lib.batch import AnomalyBatchInfer, batch_devices
from lib.datastore import AnomalyLocalDatastore
from lib.scoring.records import record_result
from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.weights.listing import ModelEntry
from monailabel_app.weights.model_folder import seal, write_config


def write_scan(path, value):
    nib.save(nib.Nifti1Image(np.full((8, 8, 4), value, np.int16), np.eye(4)), path)


class App:
    """The part of the app that a batch calls; the score is the scan's brightness, a scan of zeros is broken."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1"})
        (folder / "model.safetensors").write_bytes(b"weights")
        seal(folder)
        self.entry = ModelEntry("one", folder, "ddpm", {"modality": "t1"})
        self.asked, self.devices, self.error, self.names = [], set(), {}, set()
        self.meeting = None

    def calibration(self):
        return "shipped"

    def read(self, request):
        return options.read(request, ("signed",))

    def infer(self, request, datastore):
        image, path = request["image"], datastore.get_image_uri(request["image"])
        self.asked.append(image)
        self.names.add(current().name)
        self.devices.add(request["device"])
        if self.meeting is not None:
            self.meeting.wait(60)
        if image in self.error:
            raise self.error[image]
        value = float(nib.load(path).get_fdata().max())
        if value == 0:
            error = InvalidVolume("expected a scan with contrast")
            record_result(datastore, image, self, request, error, 1.0, path)
            raise error
        params = {
            "anomaly_score": value, "p_value": 0.04, "lesion_count": 1, "anomaly_volume_ml": 2.0, "gate": None,
            "drift": None, "model": {"id": "one", "hash": self.entry.hash}, "calibration": {"id": "shipped"},
            "settings": self.read(request),
        }  # fmt: skip
        record_result(datastore, image, self, request, params, 1.0, path)
        label = self.entry.folder.parent / f"{image}.nii.gz"
        write_scan(label, 1)
        datastore.save_label(image, str(label), request["label_tag"], {"model": request["model"], "params": params})
        return {"file": str(label), "params": params, "tag": request["label_tag"]}


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "models" / "one")


@pytest.fixture
def store(tmp_path):
    (tmp_path / "studies").mkdir()
    for name, value in (("a", 3), ("b", 0), ("c", 5)):
        write_scan(tmp_path / "studies" / f"{name}.nii.gz", value)
    return AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])


@pytest.fixture
def go(tmp_path, app, store):
    def run(**request):
        app.asked.clear()
        request = {"model": "one", "images": "all", "device": "cpu", **request}
        return AnomalyBatchInfer(tmp_path)(request, store, app.infer, app)

    return run


def test_every_scan_is_analysed_and_a_bad_one_costs_only_itself(go, app):
    results = go()
    assert app.asked == ["a", "b", "c"]
    assert results["a"]["params"]["anomaly_score"] == 3
    assert results["b"] == {"error": "expected a scan with contrast"}


def test_every_thread_works_in_the_name_of_who_started_the_batch(go, app):
    with acting(Principal("anna", "admin", "token")):
        go()
    assert app.names == {"anna"}


def test_a_second_batch_leaves_out_what_is_current_also_what_failed(go, app, store):
    go()
    results = go()
    assert app.asked == []
    assert results["a"] == {"skipped": "current", "tag": "original"}
    assert results["b"]["error"] == "expected a scan with contrast"
    write_scan(store.get_image_uri("b"), 7)
    assert go()["b"]["params"]["anomaly_score"] == 7
    assert app.asked == ["b"]


@pytest.mark.parametrize("change", [{"operating_point": "sensitive"}, {"label_tag": "batch"}, {"again": True}])
def test_other_settings_another_tag_or_the_wish_do_it_anew(go, app, change):
    go()
    results = go(**change)
    assert {"a", "c"} <= set(app.asked)
    assert "skipped" not in results["a"]


def test_a_label_of_other_settings_is_made_anew_although_the_record_is_current(go, app, store):
    go(operating_point="sensitive")
    # Looked at in a viewer meanwhile, which leaves a record and no label.
    found = {"anomaly_score": 3.0, "calibration": {"id": "shipped"}}
    record_result(store, "a", app, {"model": "one"}, found, 1.0, store.get_image_uri("a"))
    assert "skipped" not in go()["a"]


def test_other_weights_do_everything_anew(go, app):
    go()
    (app.entry.folder / "model.safetensors").write_bytes(b"others")
    seal(app.entry.folder)
    go()
    assert app.asked == ["a", "b", "c"]


def test_a_fault_of_the_programme_costs_one_scan_and_is_tried_again(go, app):
    app.error = {"a": RuntimeError("a secret path")}
    assert go()["a"] == {"error": "the analysis failed; the server's log has the details"}
    app.error = {}
    assert "params" in go()["a"]


def test_the_limit_counts_what_is_to_be_done(go, app):
    go(max_batch_size=1)
    assert app.asked == ["a"]
    go(max_batch_size=2)
    assert app.asked == ["b", "c"]


def test_progress_and_lists_are_written(go, tmp_path):
    go()
    go()
    progress = json.loads((tmp_path / "runs/batch/progress.json").read_text())
    assert (progress["status"], progress["total"]) == ("done", 0)
    assert progress["result"] == {"analysed": 2, "failed": 1, "current": 3}
    with open(tmp_path / "runs/batch/batch.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["scan"], row["state"], row["score"]) for row in rows] == [
        ("c", "analysed", "5.0"),
        ("a", "analysed", "3.0"),
        ("b", "failed", ""),
    ]
    assert rows[0]["flagged"] == "True"
    assert "expected a scan with contrast" in (tmp_path / "runs/batch/batch.html").read_text()


def test_all_gpus_work_at_the_same_time(go, app, monkeypatch):
    monkeypatch.setattr(module, "list_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(module, "choose_device", lambda wanted: "cuda:0")
    app.meeting = threading.Barrier(2)  # each of the first two waits for the other
    results = go(device="cuda", images=["a", "b"])
    assert set(results) == {"a", "b"}
    assert app.devices == {"cuda:0", "cuda:1"}


@pytest.mark.parametrize(
    ("request_", "devices"),
    [
        ({}, ["cuda:0", "cuda:1"]),
        ({"device": "cuda", "gpus": "all"}, ["cuda:0", "cuda:1"]),
        ({"device": "cuda", "gpus": "1"}, ["cuda:1"]),
        ({"device": "cuda", "multi_gpu": False}, ["cuda:0"]),
        ({"device": "cpu"}, ["cpu"]),
        ({"device": ["cuda:1"]}, ["cuda:1"]),
    ],
)
def test_a_request_says_which_devices_work(monkeypatch, request_, devices):
    monkeypatch.setattr("lib.runner.torch.cuda.device_count", lambda: 2)
    assert batch_devices(request_) == devices


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("lib.runner.torch.cuda.device_count", lambda: 2)
    with pytest.raises(InvalidSettings, match="gpus"):
        batch_devices({"device": "cuda", "gpus": "0,7"})


def test_without_a_gpu_the_cpu_works(monkeypatch):
    monkeypatch.setattr("lib.runner.torch.cuda.device_count", lambda: 0)
    assert batch_devices({"device": "cuda", "multi_gpu": True, "gpus": "all"}) == ["cpu"]
