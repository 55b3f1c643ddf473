"""Marking scans as healthy over the network, with MONAI Label's own client, on a real server."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from monailabel_app.io import images
from monailabel_app.training.manifest import Manifest, fingerprint, record_scans, site_key
from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server

ID = "Doe_Jane 1"


@pytest.fixture(scope="module")
def marked(tmp_path_factory, studies_dir):
    """A server whose model ``one`` was trained on a scan named ID, started with a list of healthy scans."""
    folder = tmp_path_factory.mktemp("healthy")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"two": MODEL})
    (app / "model" / "one").mkdir(parents=True)
    (app / "model" / "one" / "config.yaml").write_text(MODEL)
    key = site_key(app)
    Manifest("ddpm", "t1", fingerprint(key), record_scans(key, [(ID, ID, "x")]), ()).write(app / "model" / "one")
    studies = copy_studies(studies_dir, folder / "studies")
    (folder / "list.tsv").write_text("participant_id\tgroup\nixi_healthy\tHC\nnobody\tHC\n")
    conf = {"models": "all", "healthy_list": str(folder / "list.tsv")}
    env = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running_server(studies, app=app, conf=conf, env=env, fake_pipeline=True, cwd=folder, wait_s=500) as running:
        yield running


@pytest.fixture
def own(marked, tmp_path):
    return MONAILabelClient(marked.url, str(tmp_path))


@pytest.fixture
def mask(lesion_scan, tmp_path):
    """Writes a label on the grid of ``lesion_scan``."""

    def mask(marked):
        scan = images.read_volume(lesion_scan)
        label = np.zeros(scan.shape, np.uint8)
        label[20 : 20 + marked, 30, 30] = 1
        images.write_labelmap(tmp_path / "mask.nii.gz", label, scan)
        return str(tmp_path / "mask.nii.gz")

    return mask


def healthy(server):
    return server.get("/anomaly/healthy").json()


def mark(server, image, info):
    return requests.put(f"{server.url}/datastore/image/info", params={"image": image}, data={"info": json.dumps(info)})


def test_an_empty_label_makes_a_scan_healthy_and_a_lesion_takes_it_back(marked, own, lesion_scan, mask):
    own.upload_image(str(lesion_scan), ID)
    assert healthy(marked)["images"] == {"ixi_healthy": "listed"}
    assert "warnings" not in own.save_label(ID, mask(0), "final", {"label_info": [{"name": "anomaly", "idx": 1}]})
    state = healthy(marked)
    assert state["images"] == {ID: "reviewed", "ixi_healthy": "listed"}
    assert (state["scans"], state["patients"], state["minimum_patients"], state["too_few"]) == (2, 2, 10, True)
    assert state["unmatched_rows"] == 1
    assert own.info()["datastore"]["healthy"]["by_reason"] == {"reviewed": 1, "listed": 1}
    assert "Caution" not in own.info()["models"]["one"]["description"]

    assert mark(marked, ID, {"healthy": True}).json() is None
    warnings = own.save_label(ID, mask(4))["warnings"]
    assert "this scan is marked as healthy" in warnings[0]
    assert warnings[1] == "the model one was trained on this scan as a healthy one: train it anew"
    state = healthy(marked)
    assert state["contaminated_images"] == {ID: "marked"}
    info = own.info()
    assert info["datastore"]["healthy"]["contaminated"] == 1
    assert "Caution: 1 of the scans it was trained on" in info["models"]["one"]["description"]
    assert "Caution" not in info["models"]["two"]["description"]

    answer = requests.delete(f"{marked.url}/datastore/label", params={"id": ID, "tag": "final"})
    assert answer.status_code == 200, answer.text
    assert healthy(marked)["images"][ID] == "marked"
    assert "Caution" not in own.info()["models"]["one"]["description"]
    mark(marked, ID, {"healthy": None})
    assert ID not in healthy(marked)["images"]


def test_the_ids_are_in_no_answer_of_info(marked, own):
    own.save_label("ixi_lesion", marked_empty(own, marked))
    text = json.dumps(own.info()["datastore"])
    assert "ixi_lesion" not in text
    assert own.info()["datastore"]["healthy"]["by_reason"]["reviewed"] == 1
    assert healthy(marked)["images"]["ixi_lesion"] == "reviewed"
    answer = requests.delete(f"{marked.url}/datastore/label", params={"id": "ixi_lesion", "tag": "final"})
    assert answer.status_code == 200, answer.text


def marked_empty(client, server):
    scan = server.studies + "/ixi_lesion.nii.gz"
    volume = images.read_volume(scan)
    path = f"{client._tmpdir}/empty.nii.gz"
    images.write_labelmap(path, np.zeros(volume.shape, np.uint8), volume)
    return path


def test_a_label_that_is_none_or_lies_elsewhere_is_a_400_that_says_so(marked, own, tmp_path):
    path = tmp_path / "label.nii.gz"
    path.write_text("no image")
    with pytest.raises(MONAILabelClientException, match=r"Status: 400.*expected"):
        own.save_label("ixi_healthy", str(path))
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.eye(4)), path)
    with pytest.raises(MONAILabelClientException, match=r"Status: 400.*on the grid of its scan.*20x20x20"):
        own.save_label("ixi_healthy", str(path))
    assert "final" not in own.datastore()["objects"]["ixi_healthy"]["labels"]


@pytest.mark.parametrize(
    ("image", "info", "status"),
    [("ixi_healthy", {"healthy": "perhaps"}, 400), ("nobody", {"healthy": True}, 404), ("ixi_healthy", [1], 400)],
)
def test_a_mark_that_cannot_be_set_is_refused(marked, image, info, status):
    answer = mark(marked, image, info)
    assert answer.status_code == status
    assert "expected" in answer.text or "no image" in answer.text


def test_not_healthy_by_hand_overrules_the_list(marked):
    assert mark(marked, "ixi_healthy", {"healthy": False}).status_code == 200
    assert "ixi_healthy" not in healthy(marked)["images"]
    assert mark(marked, "ixi_healthy", {"healthy": None}).status_code == 200
    assert healthy(marked)["images"]["ixi_healthy"] == "listed"
    mark(marked, "ixi_healthy", {"healthy": None})
    assert healthy(marked)["images"]["ixi_healthy"] == "listed"


def test_no_line_of_ours_in_the_log_names_a_scan(marked):
    """MONAI Label's own lines do; ours may not."""
    ours = [line for line in marked.log.read_text().splitlines() if re.search(r"\((lib|monailabel_app)[.:]", line)]
    assert not [line for line in ours if "Doe" in line or "ixi_" in line]
    assert "Traceback" not in marked.log.read_text()
