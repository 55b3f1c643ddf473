"""A training started from OHIF's panel on the series of an archive, watched there, and used there."""

import shutil
import time

import pytest
from PIL import Image

from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.healthy_heads import write_heads
from tests.real.conftest import START_S
from tests.real.orthanc_server import OrthancServer, orthanc_binary
from tests.server_fixture import ROOT, running_server

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.orthanc]

CHOICES = {"preset": "tiny", "start_from": "scratch", "modality": "t1"}
TEXTS = {
    "minutes": "0.2",
    "model_name": "from_ohif",
    "train_batch_size": "8",
    "learning_rate": "0.002",
    "val_split": "0.4",
}


@pytest.fixture(scope="module")
def archive(healthy_scan, tmp_path_factory):
    """An Orthanc with ten healthy heads, each a patient of its own; gives their series."""
    if orthanc_binary() is None:
        pytest.skip("needs Orthanc (Debian packages orthanc, orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("heads")
    heads = write_heads(healthy_scan, folder / "nifti", [f"h{number}" for number in range(10)])
    with OrthancServer(tmp_path_factory.mktemp("healthy_orthanc")) as server:
        stored = []
        for number, head in enumerate(heads):
            series = write_series(folder / f"{number}", read_volume(head), plane="axial", seed=500 + number)
            server.upload(series.files)
            stored.append(series)
        shutil.rmtree(folder)
        yield server, stored


@pytest.fixture(scope="module")
def training_server(archive, tmp_path_factory):
    """The stock server with a trainer, from a copy of the app, so that models are written beside that copy."""
    app, home = tmp_path_factory.mktemp("training_app"), tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "main.py", app)
    for name in ("lib", "monailabel_app"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "model_weights").symlink_to(ROOT / "model_weights")
    conf = {"models": "all", "trainers": "ddpm", "healthy": "all"}
    env = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(home / "dicomweb_cache"), "HOME": str(home)}
    with running_server(archive[0].dicomweb_url, app=app, conf=conf, env=env, wait_s=START_S) as running:
        yield running


def test_update_model_trains_and_the_new_model_runs_in_the_panel(ohif, training_server, archive, screenshots):
    study = archive[1][0].study_uid
    ohif.open_study(training_server.url, study)
    assert "from_ohif" not in ohif.connect()
    ohif.choose_training("ddpm", CHOICES, TEXTS)
    ohif.update_model()
    task = wait_until_trained(training_server)
    assert task["status"] == "DONE", "\n".join(task["details"]) + training_server.log_tail()
    assert task["progress"]["status"] == "published"

    ohif.open_study(training_server.url, study)
    assert "from_ohif" in ohif.connect()
    accuracy = round(100 * task["progress"]["best_metric"])
    # The bars are drawn once the server has answered the panel.
    wanted = {"Annotated:": "100%", "Train Acc:": f"{accuracy}%"}
    ohif.wait(lambda: wanted.items() <= ohif.progress().items(), f"{wanted} in the panel")
    ohif.browser.execute_script("[...document.querySelectorAll('.tab-label')][0].click()")
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_training.png")
    answer = training_server.infer("from_ohif", params={"image": archive[1][0].series_uid, "output": "json"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["id"] == "from_ohif@0001"


def wait_until_trained(server, seconds: float = 1800) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        task = server.get("/train/").json()
        if task.get("status") in {"DONE", "ERROR", "STOPPED"}:
            return task
        time.sleep(1)
    raise TimeoutError(f"the training did not end: {task}")
