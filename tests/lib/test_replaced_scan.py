"""A scan that is uploaded anew under its id while the former one is worked on gets nothing of the former one's."""

import os
import time
from types import SimpleNamespace

import pytest
import requests

from lib.errors import UnknownImage
from lib.kept_images import keep_images
from lib.plans import plan_of
from lib.scoring import records
from lib.scoring.records import record_result, records_of
from lib.shared_table import stamp_of
from tests.lib.conftest import MODEL
from tests.lib.results_app import small_app, write_scan
from tests.server_fixture import make_app, running_server

RESULT = {"anomaly_score": 2.0, "p_value": 0.5, "threshold": 1.9, "lesion_count": 3, "anomaly_volume_ml": 4.0}


@pytest.fixture
def app(tmp_path):
    return small_app(tmp_path)


def upload(app, tmp_path, seed=9):
    write_scan(tmp_path / "new.nii.gz", seed)
    app.store.add_image("a", str(tmp_path / "new.nii.gz"), {})


def test_a_label_of_the_former_scan_is_refused(app, tmp_path):
    stamp = stamp_of(app.store.get_image_uri("a"))
    write_scan(tmp_path / "label.nii.gz")
    app.store.save_label("a", str(tmp_path / "label.nii.gz"), "final", {}, of=stamp)
    upload(app, tmp_path)
    for tag in ("final", "anomaly_map"):
        with pytest.raises(UnknownImage, match="replaced"):
            app.store.save_label("a", str(tmp_path / "label.nii.gz"), tag, {}, of=stamp)
    assert app.store.get_labels_by_image_id("a") == {}


def test_images_of_the_former_scan_are_not_kept_and_the_result_says_so(app, tmp_path):
    stamp, result = stamp_of(app.store.get_image_uri("a")), {"warnings": []}
    write_scan(tmp_path / "anomaly_map.nii.gz")
    upload(app, tmp_path)
    files = {"anomaly_map": str(tmp_path / "anomaly_map.nii.gz")}
    keep_images(app.store, "a", files, "basis", "ddpm_t1", result, of=stamp)
    assert app.store.get_labels_by_image_id("a") == {}
    assert "replaced" in result["warnings"][0]


def test_a_record_that_is_late_by_a_moment_is_not_kept(app, tmp_path, monkeypatch):
    keep = records.keep

    def late(*args, **kwargs):
        upload(app, tmp_path)
        keep(*args, **kwargs)

    monkeypatch.setattr(records, "keep", late)
    path = app.store.get_image_uri("a")
    assert record_result(app.store, "a", app.models["ddpm_t1"], {}, RESULT, 1.0, path) is None
    assert records_of(app.store.get_image_info("a")) == {}


def test_a_job_for_the_new_scan_or_another_version_of_the_model_is_not_that_of_the_former(app, tmp_path):
    def equal():
        return plan_of(app, "a", "ddpm_t1", {}).equal

    first = equal()
    assert equal() == first
    upload(app, tmp_path)
    second = equal()
    assert second != first
    app.models["ddpm_t1"].entry = SimpleNamespace(**{**vars(app.models["ddpm_t1"].entry), "folder": tmp_path / "v2"})
    assert equal() not in {first, second}
    os.utime(app.store.get_image_uri("a"), ns=(1, 1))
    app.models["ddpm_t1"].calibration = lambda: "site"
    assert equal() not in {first, second}


@pytest.fixture
def server(tmp_path):
    """One of its own, where an analysis does not end as long as the file ``hold`` exists."""
    (tmp_path / "app").mkdir()
    (tmp_path / "studies").mkdir()
    make_app(tmp_path / "app", {"one": MODEL})
    env = {"FAKE_HOLD": str(tmp_path / "hold")}
    with running_server(tmp_path / "studies", app=tmp_path / "app", env=env, fake_pipeline=True, cwd=tmp_path) as it:
        yield it


def test_a_scan_that_is_uploaded_anew_while_it_is_analysed_gets_no_map_label_or_record(server, tmp_path):
    hold, busy = tmp_path / "hold", tmp_path / "hold.busy"

    def put(seed):
        write_scan(tmp_path / "scan.nii.gz", seed)
        with (tmp_path / "scan.nii.gz").open("rb") as file:
            address = f"{server.url}/datastore/image"
            requests.put(address, params={"image": "twice"}, files={"file": file}, timeout=120).raise_for_status()

    def submit():
        return requests.post(f"{server.url}/anomaly/jobs", json={"image": "twice", "model": "one"}, timeout=120).json()

    put(1)
    hold.touch()
    first, deadline = submit(), time.monotonic() + 240
    while not busy.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    put(2)
    second = submit()
    assert second["id"] != first["id"]
    requests.delete(f"{server.url}/anomaly/jobs/{second['id']}", timeout=120)
    hold.unlink()
    while (now := server.get(f"/anomaly/jobs/{first['id']}").json())["state"] not in {"done", "failed"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.get("/datastore/?output=all").json()["objects"]["twice"]["labels"] == {}
    study = server.get("/anomaly/studies/twice").json()
    assert (study["state"], study["results"]) == ("new", {}), now
    assert server.get("/anomaly/results/twice?model=one").status_code == 404
