"""Scores and an evaluation of the sample scans by shipped models, through the server that users start."""

import time
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk

from lib.catalogue import list_models
from tests.real.conftest import START_S
from tests.server_fixture import ROOT, copy_studies, running_server

pytestmark = pytest.mark.slow

MODEL = "atlas_zscore_t1"
BASELINES = {"atlas_zscore_t1", "intensity_t1"}
WAIT_S = 900


@pytest.fixture(scope="module")
def site(tmp_path_factory, studies_dir):
    """A server with an app folder of its own, so that its reports stay out of this one, and a broken scan."""
    if not set(list_models(ROOT)) >= BASELINES:
        pytest.skip("needs the baselines in model_weights/")
    folder = tmp_path_factory.mktemp("site")
    (folder / "app").mkdir()
    for name in ("main.py", "lib", "monailabel_app", "model_weights"):
        (folder / "app" / name).symlink_to(ROOT / name)
    studies = copy_studies(studies_dir, folder / "studies")
    (studies / "broken.nii.gz").write_text("no image")
    with running_server(studies, app=folder / "app", wait_s=START_S) as running:
        yield running


def submit(server, image, label):
    with label.open("rb") as file:
        answer = requests.put(
            f"{server.url}/datastore/label?image={image}&tag=final", files={"label": (label.name, file)}, timeout=120
        )
    assert answer.status_code == 200, answer.text


def score(server, method, **request):
    """Start a scoring and wait for its end."""
    answer = requests.post(f"{server.url}/scoring/{method}", json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        task = server.get("/scoring/").json()
        if task["status"] not in {"SUBMITTED", "RUNNING"}:
            assert task["status"] == "DONE", "\n".join(task["details"])
            return task["progress"]
        time.sleep(1)
    raise AssertionError(f"the scoring did not end: {task}")


def info(server, image):
    return server.get("/datastore/?output=all").json()["objects"][image]["image"]["info"]


def test_an_evaluation_without_final_labels_is_refused(site):
    answer = requests.post(f"{site.url}/scoring/evaluate", json={}, timeout=120)
    assert answer.status_code == 400
    assert "final label" in answer.json()["detail"]
    assert site.get("/anomaly/evaluation/").json() == []


def test_every_scan_gets_the_score_that_an_analysis_gives_it(site):
    progress = score(site, "anomaly_scores", model=MODEL)
    assert progress["result"] == {"current": 0, "without_model": 0, "analysed": 2, "failed": 1, "left": 0}
    healthy, lesion = (info(site, image)["anomaly"][MODEL] for image in ("ixi_healthy", "ixi_lesion"))
    assert lesion["score"] > healthy["score"]
    assert lesion["gate"] == {"passed": True, "reasons": []}
    assert "error" in info(site, "broken")["anomaly"][MODEL]

    found = site.infer(MODEL, params={"image": "ixi_lesion", "output": "json"}).json()
    assert lesion["score"] == pytest.approx(found["anomaly_score"], rel=1e-4)
    assert lesion["p_value"] == pytest.approx(found["p_value"], rel=1e-4)
    assert lesion["volume_ml"] == pytest.approx(found["anomaly_volume_ml"], rel=1e-4)
    assert lesion["hash"] == found["model"]["hash"]
    assert (lesion["drift"] or {}).get("distance") == (found["drift"] or {}).get("distance")
    assert score(site, "anomaly_scores", model=MODEL)["result"]["current"] == 3


def test_final_labels_are_evaluated_into_the_scans_information_and_a_page(site, healthy_scan, lesion_mask, tmp_path):
    submit(site, "ixi_lesion", lesion_mask)
    scan = sitk.ReadImage(str(healthy_scan))
    nothing = sitk.GetImageFromArray(np.zeros(sitk.GetArrayFromImage(scan).shape, np.uint8))
    nothing.CopyInformation(scan)
    sitk.WriteImage(nothing, str(tmp_path / "nothing.nii.gz"))
    submit(site, "ixi_healthy", tmp_path / "nothing.nii.gz")

    progress = score(site, "evaluate", models=MODEL, workers=1)
    result = progress["result"]
    assert set(result["models"]) == BASELINES
    assert result["failed"] == []
    (data,) = result["sets"]
    assert (data["modality"], data["cases"], data["healthy"], data["skipped"]) == ("t1", 1, 1, 0)

    lesion = info(site, "ixi_lesion")["evaluation"]
    assert set(lesion) == BASELINES
    points = lesion[MODEL]["points"]
    assert set(points) >= {"sensitive", "balanced", "specific"}
    for point in points.values():
        assert 0 <= point["dice"] <= 1
        assert point["found"] + point["missed"] == 1
    assert lesion[MODEL]["volume_ml"] == pytest.approx(5.7, abs=0.6)
    healthy = info(site, "ixi_healthy")["evaluation"][MODEL]
    assert healthy["healthy"] is True
    assert healthy["points"]["sensitive"]["false_ml"] > 0
    # The scores of before are there, too.
    assert info(site, "ixi_lesion")["anomaly"][MODEL]["score"] > 0

    (report,) = site.get("/anomaly/evaluation/").json()
    assert report["id"] == result["report"] == lesion[MODEL]["report"]
    page = site.get(report["url"])
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert MODEL in page.text
    assert "data:image/png;base64," in page.text
    for name in report["files"]:
        file = site.get(f"{report['url']}{name}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
    assert "evaluation.json" in report["files"]
    (app,) = Path(site.studies).parent.glob("app")
    assert (app / "runs" / "scoring" / report["id"] / "evaluation.html").is_file()


def test_what_was_measured_before_is_read_again(site):
    before = site.get("/anomaly/evaluation/").json()
    score(site, "evaluate", models=MODEL, workers=1)
    after = site.get("/anomaly/evaluation/").json()
    assert [report["id"] for report in after[1:]] == [report["id"] for report in before]
    tables = [site.get(f"{report['url']}scans.csv").text for report in after[:2]]
    assert tables[0] == tables[1]
    measured = list((Path(site.studies).parent / "app" / "runs" / "scoring" / "work" / "measured").rglob("*.json"))
    assert len(measured) == len(BASELINES)
    assert "Traceback" not in site.log.read_text()
