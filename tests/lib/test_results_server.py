"""Worklist, results and reviews of a real server: analysed there, decided there, and there again after a restart."""

import nibabel as nib
import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server


@pytest.fixture
def folder(tmp_path, studies_dir):
    (tmp_path / "app").mkdir()
    make_app(tmp_path / "app", {"one": MODEL, "two": MODEL})
    copy_studies(studies_dir, tmp_path / "studies")
    (tmp_path / "studies" / "broken.nii.gz").write_text("no image")
    return tmp_path


def start(folder):
    return running_server(folder / "studies", app=folder / "app", fake_pipeline=True, cwd=folder)


def states(server):
    return {study["image"]: study["state"] for study in server.get("/anomaly/studies").json()["studies"]}


def test_from_the_worklist_to_a_final_label_that_outlives_the_server(folder):
    with start(folder) as server:
        assert set(states(server).values()) == {"new"}
        assert server.get("/anomaly/results/ixi_lesion").status_code == 404
        for image in ("ixi_lesion", "broken"):
            server.infer("one", params={"image": image, "output": "json"})
        assert states(server)["ixi_lesion"] == "analysed"
        assert states(server)["broken"] == "failed"

        found = server.get("/anomaly/results/ixi_lesion").json()
        assert found["model"] == "one"
        assert found["record"]["lesions"] == 1
        other = server.get("/anomaly/results/ixi_lesion?threshold=0.97").json()
        assert other["finding"]["anomaly_volume_ml"] < found["finding"]["anomaly_volume_ml"]
        for kind, address in found["files"].items():
            if not kind.startswith("report"):
                assert server.get(address).status_code == 200, kind

        review = {"model": "one", "reader": "anna", "comment": "look at the rim", "lesions": []}
        address = f"{server.url}/anomaly/reviews/ixi_lesion"
        assert requests.put(address, json=review, timeout=60).status_code == 200

    with start(folder) as server:
        held = server.get("/anomaly/reviews/ixi_lesion").json()
        assert held["comment"] == "look at the rim"
        # The analyses of the former server may be gone: asked for again, they are.
        server.infer("one", params={"image": "ixi_lesion", "output": "json"})
        address = f"{server.url}/anomaly/reviews/ixi_lesion"
        done = requests.put(address, json={**review, "final": True, "rest": "reject"}, timeout=60)
        assert done.status_code == 200, done.text
        assert states(server)["ixi_lesion"] == "reviewed"
        label = folder / "studies" / "labels" / "final" / "ixi_lesion.nii.gz"
        assert not nib.load(label).get_fdata().any()
        rows = server.get("/anomaly/reviews/?format=json").json()["rows"]
        assert [(row["image"], row["decision"]) for row in rows] == [("ixi_lesion", "reject")]
        assert "ixi_lesion" not in server.log.read_text().replace("ixi_lesion.nii.gz", "").split("Uvicorn running")[1]
