"""Healthy-only training as a client sees it: upload, mark, train, watch, infer with the result, roll back."""

import json
import shutil
import time
from pathlib import Path

import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from monailabel_app.weights import versions
from tests.healthy_heads import write_heads
from tests.server_fixture import ROOT, running_server

pytestmark = pytest.mark.slow

NAMES = [f"Doe_{number:02d}_Jane" for number in range(12)]
TINY = {
    "modality": "t1",
    "model_name": "ddpm_site",
    "preset": "tiny",
    "start_from": "scratch",
    "max_steps": 40,
    "train_batch_size": 8,
    "learning_rate": 0.002,
    "val_split": 0.4,
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app folder with a copy of the code, so that models and runs are written beside it."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copy(ROOT / "main.py", folder)
    for name in ("lib", "monailabel_app"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "model_weights").symlink_to(ROOT / "model_weights")
    return folder


@pytest.fixture(scope="module")
def server(app, tmp_path_factory):
    studies = tmp_path_factory.mktemp("studies")
    with running_server(studies, app=app, conf={"models": "all", "trainers": "ddpm"}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return MONAILabelClient(server.url, str(tmp_path_factory.mktemp("client")))


@pytest.fixture(scope="module")
def heads(tmp_path_factory, healthy_scan):
    return write_heads(Path(healthy_scan), tmp_path_factory.mktemp("heads"), NAMES)


@pytest.fixture(scope="module")
def marked(client, server, heads, tmp_path_factory):
    """All twelve on the server: half marked by their image information, half by an empty final label."""
    empty = tmp_path_factory.mktemp("labels") / "empty.nrrd"
    for number, (name, head) in enumerate(zip(NAMES, heads, strict=True)):
        client.upload_image(str(head), name)
        if number % 2:
            answer = requests.put(
                f"{server.url}/datastore/image/info",
                params={"image": name},
                data={"info": json.dumps({"healthy": True})},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
        else:
            image = sitk.ReadImage(str(head))
            label = sitk.Image(image.GetSize(), sitk.sitkUInt8)
            label.CopyInformation(image)
            sitk.WriteImage(label, str(empty))
            client.save_label(name, str(empty), "final", {"label_info": []})
    return NAMES


def wait_for_training(server, seconds: float = 1800) -> list[dict]:
    """Polls as a viewer does until the training is over; every answer in turn."""
    seen, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        task = server.get("/train/").json()
        seen.append(task)
        if task["status"] not in {"SUBMITTED", "RUNNING"}:
            return seen
        time.sleep(0.3)
    raise TimeoutError(f"the training did not end: {seen[-1]}\n{server.log_tail()}")


def test_a_training_without_healthy_scans_is_refused_with_the_minimum(client, server):
    with pytest.raises(MONAILabelClientException, match="at least 10 patients, got 0"):
        client.train_start("ddpm", TINY)
    assert requests.post(f"{server.url}/train/ddpm", json=TINY, timeout=60).status_code == 400
    # OHIF's Update Model: every trainer there is.
    assert requests.post(f"{server.url}/train/", json={}, timeout=60).status_code == 400


def test_options_that_cannot_be_are_refused_before_anything_starts(server, marked):
    for wrong, word in (
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"start_from": "nothing_here"}, "nothing_here"),
        ({"model_name": "../x"}, "model name"),
        ({"privacy": "epsilon=much"}, "epsilon"),
        ({"train_batch_size": 0}, "batch"),
    ):
        answer = requests.post(f"{server.url}/train/ddpm", json={**TINY, **wrong}, timeout=60)
        assert answer.status_code in {400, 404}, answer.text
        assert word in answer.json()["detail"]
    assert server.get("/train/").status_code == 404


def test_from_upload_to_a_model_that_serves_and_back(client, server, app, marked, healthy_scan):
    info = client.info()
    assert set(info["trainers"]) == {"ddpm"}
    assert {"minutes", "max_epochs", "start_from", "privacy", "val_split"} <= set(info["trainers"]["ddpm"]["config"])
    assert info["datastore"]["completed"] == len(marked), "3D Slicer's Train button stays grey"
    assert "ddpm_site" not in info["models"]

    client.train_start("ddpm", TINY)
    seen = wait_for_training(server)
    assert seen[-1]["status"] == "DONE", "\n".join(seen[-1]["details"]) + server.log_tail()
    progress = [task["progress"] for task in seen if task.get("progress")]
    assert {"preparing", "training"} & {state["status"] for state in progress}
    last = progress[-1]
    assert last["status"] == "published"
    assert 0 < last["best_metric"] <= 1
    assert last["loss"] > 0
    assert last["images_per_second"] > 0
    stats = client.info()["train_stats"]["ddpm"]
    assert stats["epoch"] == stats["total_epochs"] >= 1
    assert stats["total_time"]

    # No restart: the new name is offered and answers.
    assert "ddpm_site" in client.info()["models"]
    _, first = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    assert first["model"]["id"] == "ddpm_site@0001"

    client.train_start("ddpm", {**TINY, "start_from": "serving model", "max_steps": 8, "promote": "always", "seed": 1})
    assert wait_for_training(server)[-1]["status"] == "DONE", server.log_tail()
    _, second = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    assert second["model"]["id"] == "ddpm_site@0002"
    assert second["model"]["hash"] != first["model"]["hash"]
    manifest = json.loads((app / "model/ddpm_site/versions/0002/training.json").read_text())
    assert manifest["start_from"]["version"] == "0001"
    assert manifest["counts"]["train_patients"] + manifest["counts"]["held_out_patients"] == len(marked)

    versions.rollback(app, "ddpm_site", reason="by hand")
    _, third = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    assert third["model"] == first["model"]


def test_nothing_that_was_written_names_a_patient(server, app, marked):
    assert (app / "model/ddpm_site/versions").is_dir(), "run the test before"
    for folder in ("model", "runs", "cache"):
        for path in (app / folder).rglob("*"):
            assert "Doe" not in path.name
            assert not path.is_file() or b"Doe_" not in path.read_bytes(), path
    details = "\n".join(line for task in server.get("/train/", params={"all": True}).json() for line in task["details"])
    assert "epoch" in details
    assert "Doe_" not in details


def test_a_stopped_training_leaves_what_serves_and_can_be_resumed(client, server, app, marked):
    _, before = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    published = sorted(path.name for path in (app / "model/ddpm_site/versions").iterdir())
    client.train_start("ddpm", {**TINY, "max_steps": 400, "promote": "always", "seed": 2})
    wait_until(lambda: progress_of(server).get("step", 0) >= 100, "the first checkpoint")
    client.train_stop()
    wait_until(lambda: progress_of(server).get("status") == "stopped", "the end of the process")
    assert sorted(path.name for path in (app / "model/ddpm_site/versions").iterdir()) == published
    _, after = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    assert after["model"] == before["model"]
    reached = progress_of(server)["step"]

    # Every other choice is the stopped run's: the request's own would give a run of 40 steps.
    client.train_start("ddpm", {**TINY, "resume": True, "promote": "always"})
    seen = wait_for_training(server)
    assert seen[-1]["status"] == "DONE", "\n".join(seen[-1]["details"])
    steps = [task["progress"]["step"] for task in seen if "step" in task.get("progress", {})]
    assert min(steps) >= reached
    assert steps[-1] == 400
    _, resumed = client.infer("ddpm_site", marked[0], {"result_extension": ".nrrd"})
    assert resumed["model"]["id"] == "ddpm_site@0003"


def progress_of(server) -> dict:
    return server.get("/train/").json().get("progress", {})


def wait_until(condition, what: str, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.2)


def test_a_scan_with_a_lesion_is_left_out_and_reported(client, server, marked, heads, tmp_path):
    image = sitk.ReadImage(str(heads[0]))
    label = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    label.CopyInformation(image)
    label[30:34, 40:44, 30:34] = 1
    sitk.WriteImage(label, str(tmp_path / "lesion.nrrd"))
    before = server.get("/anomaly/healthy").json()
    client.save_label(marked[1], str(tmp_path / "lesion.nrrd"), "final", {"label_info": []})
    after = server.get("/anomaly/healthy").json()
    assert before["scans"] == len(marked)
    assert after["scans"] == len(marked) - 1
    assert after["contaminated"] == 1
