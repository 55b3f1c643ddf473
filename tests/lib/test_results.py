"""Results over HTTP: figures, images on the scan's grid and other settings, all from the analysis at hand."""

import json
import threading

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.endpoints import results
from lib.scoring.records import record_result
from tests.lib.results_app import (
    AFFINE,
    POINTS,
    SHAPE,
    TAILS,
    anomaly_map,
    calibration,
    client_of,
    small_app,
    write_scan,
)

ID = "6: t1_mprage sag?"


@pytest.fixture
def app(tmp_path):
    app = small_app(tmp_path, scans=("a", "b", ID))
    app.done = {"a", ID}
    return app


@pytest.fixture
def client(app, monkeypatch):
    return client_of(app, monkeypatch)


def result(client, image="a", **query):
    reply = client.get(f"/anomaly/results/{image}", params=query)
    assert reply.status_code == 200, reply.text
    assert reply.headers["cache-control"] == "no-store"
    return json.loads(reply.text, parse_constant=pytest.fail)


def image_of(client, address, tmp_path):
    reply = client.get(address)
    assert reply.status_code == 200, reply.text
    assert reply.headers["cache-control"] == "no-store"
    name = address.partition("?")[0].rpartition("/")[2]
    (tmp_path / name).write_bytes(reply.content)
    return tmp_path / name


def test_a_result_has_its_figures_and_no_nan(client):
    answer = result(client)
    assert (answer["image"], answer["model"]) == ("a", "ddpm_t1")
    assert answer["finding"]["anomaly_score"] == 8.5
    assert answer["finding"]["p_value"] is None
    assert answer["finding"]["threshold"] == POINTS["balanced"]
    assert len(answer["finding"]["lesions"]) == answer["finding"]["lesion_count"] == 3
    about = answer["calibration"]
    assert about["points"] == POINTS
    assert about["tails"]["values"] == list(TAILS)
    assert len(about["tails"]["shares"]) == len(TAILS)
    assert about["scan_scores"] == [1.0, 2.0, 3.0, 4.0]
    assert (about["id"], about["score"], about["smoothing"]) == ("shipped", "signed", "standard")
    assert answer["review"] is None
    assert answer["record"] is None


def test_the_window_shows_the_brain(client):
    low, high = result(client)["window"]
    assert 100 <= low < 105
    assert 195 < high < 200


def test_the_record_of_the_model_is_beside_the_result(app, client):
    found = {"anomaly_score": 2.0, "threshold": 1.0}
    record_result(app.store, "a", app.models["ddpm_t1"], {}, found, 1.0, app.store.get_image_uri("a"))
    assert result(client)["record"]["score"] == 2.0
    assert result(client, model="ddpm_flair")["record"] is None


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("kind", ["anomaly_map", "reconstruction", "mask", "brain_mask", "scan"])
def test_images_lie_on_the_scans_grid_in_every_format(client, tmp_path, kind, suffix):
    file = image_of(client, f"/anomaly/results/a/{kind}{suffix}", tmp_path)
    image = sitk.ReadImage(str(file))
    scan = sitk.ReadImage(str(tmp_path / "studies" / "a.nii.gz"))
    assert image.GetSize() == scan.GetSize()
    assert np.allclose(image.GetOrigin(), scan.GetOrigin())
    assert np.allclose(image.GetDirection(), scan.GetDirection())
    assert image.GetPixelID() == (sitk.sitkUInt8 if "mask" in kind else image.GetPixelID())


def test_the_map_arrives_with_its_values(client, tmp_path):
    map_file = image_of(client, result(client)["files"]["anomaly_map"], tmp_path)
    found = nib.load(map_file)
    assert np.array_equal(found.get_fdata(dtype=np.float32), anomaly_map())
    assert np.allclose(found.affine, AFFINE)
    assert found.shape == SHAPE


def test_the_addresses_in_a_result_give_that_results_images(client, tmp_path):
    """Also for an id that has to be quoted."""
    files = result(client, ID.replace("?", "%3F"), threshold="8.4", min_lesion_volume="0")["files"]
    mask = nib.load(image_of(client, files["mask"], tmp_path)).get_fdata()
    assert np.array_equal(mask > 0, anomaly_map() > 8.4)
    assert set(files) >= {"anomaly_map", "reconstruction", "mask", "brain_mask", "scan", "report_html", "report_json"}
    assert "uncertainty_map" not in files
    again = image_of(client, result(client)["files"]["scan"], tmp_path)
    assert again.read_bytes() == (tmp_path / "studies" / "a.nii.gz").read_bytes()


def test_bands_have_a_fixed_meaning_and_an_image(client, tmp_path):
    answer = result(client, min_lesion_volume="0")
    bands = answer["bands"]
    assert [band["name"] for band in bands] == ["low suspicion", "medium suspicion", "high suspicion"]
    assert [band["share"] for band in bands] == [0.01, 0.001, 0.0001]
    assert [band["value"] for band in bands] == [6.0, 9.0, 12.0]
    assert all(len(band["colour"]) == 3 for band in bands)
    values = nib.load(image_of(client, answer["files"]["bands"], tmp_path)).get_fdata()
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    assert np.array_equal(values > 0, (anomaly_map() > 6) & brain)


def test_the_uncertainty_map_is_there_where_it_was_asked_for(client, tmp_path):
    files = result(client, uncertainty="on")["files"]
    assert nib.load(image_of(client, files["uncertainty_map"], tmp_path)).shape == SHAPE
    reply = client.get("/anomaly/results/a/uncertainty_map.nii.gz")
    assert reply.status_code == 404
    assert "uncertainty=on" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("query", "lesions"),
    [({}, 3), ({"operating_point": "specific"}, 0), ({"threshold": "5.5"}, 2), ({"min_lesion_volume": "2 ml"}, 1),
     ({"threshold": "4.5", "min_lesion_volume": "0"}, 4), ({"threshold": "8.5", "min_lesion_volume": "0"}, 1)],
)  # fmt: skip
def test_other_settings_are_answered_from_the_same_analysis(client, query, lesions):
    assert result(client, **query)["finding"]["lesion_count"] == lesions


def test_a_report_without_a_p_value_says_so(app, client):
    files = result(client)["files"]
    page = client.get(files["report_html"])
    assert page.status_code == 200
    assert "unknown" in page.text
    assert "p = " not in page.text
    record = client.get(files["report_json"]).json()
    assert record["finding"]["p_value"] is None
    assert not any("p = " in sentence for sentence in record["summary"])


def test_a_report_shows_the_review_and_fetches_nothing(app, client):
    app.p_value = 0.2
    row = {"peak_voxel": [5, 5, 5], "decision": "reject", "comment": "a vessel"}
    body = {"model": "ddpm_t1", "params": {"threshold": 3.5}, "reader": "anna", "lesions": [row]}
    assert client.put("/anomaly/reviews/a", json=body).status_code == 200
    files = result(client, threshold=3.5)["files"]
    page = client.get(files["report_html"])
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "a vessel" in page.text
    assert "<script" not in page.text
    said = page.headers["content-security-policy"]
    assert said.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert "script" not in said
    record = client.get(files["report_json"]).json()
    assert record["finding"]["threshold"] == 3.5
    assert record["review"]["reader"] == "anna"
    other = client.get("/anomaly/results/a/report.json", params={"model": "ddpm_flair", "threshold": 3.5}).json()
    assert other["review"] is None
    as_result = client.get(files["report_json"].replace("report.json", "result.json")).json()
    assert as_result == result(client, model="ddpm_t1", threshold=3.5)


@pytest.fixture
def asked(app, monkeypatch):
    """What was asked of the analyses at hand."""
    calls, found = [], app.analysed
    monkeypatch.setattr(app, "analysed", lambda *args, **kwargs: calls.append(args) or found(*args, **kwargs))
    return calls


def test_the_images_of_a_result_are_worked_out_once(client, asked):
    files = result(client, model="ddpm_t1", threshold="3.25")["files"]
    for kind in ("anomaly_map", "mask", "bands", "brain_mask"):
        assert client.get(files[kind]).status_code == 200
    assert len(asked) == 1
    result(client, model="ddpm_t1", threshold="3.5")
    assert len(asked) == 2


def test_a_scan_that_was_replaced_is_looked_at_anew(client, asked, tmp_path):
    result(client)
    write_scan(tmp_path / "studies" / "a.nii.gz", seed=99)
    result(client)
    assert len(asked) == 2


def test_without_an_analysis_it_says_how_to_ask_for_one(client):
    for path in ("/anomaly/results/b", "/anomaly/results/b/mask.nii.gz", "/anomaly/results/b/report.html"):
        reply = client.get(path)
        assert reply.status_code == 404
        assert "/anomaly/jobs" in reply.json()["detail"]
    assert client.get("/anomaly/results/b/scan.nii.gz").status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("nobody", 404, "no image"),
        ("nobody/scan.nii.gz", 404, "no image"),
        ("a/mask.png", 404, ".nrrd"),
        ("a/tree.nii.gz", 404, "anomaly_map"),
        ("a?operating_point=best", 400, "balanced"),
        ("a?threshold=nan", 400, "threshold"),
        ("a?colour=red", 400, "operating_point"),
        ("a?score=x", 400, "signed"),
        ("a/mask.nii.gz?min_lesion_volume=-1", 400, "min_lesion_volume"),
    ],
)
def test_what_there_is_not_is_refused_in_words(client, path, status, said):
    reply = client.get(f"/anomaly/results/{path}")
    assert reply.status_code == status, reply.text
    assert said in reply.json()["detail"]


def test_nothing_is_left_behind_on_the_disk(client, tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    assert client.get("/anomaly/results/a/mask.nii.gz").status_code == 200
    assert client.get("/anomaly/results/b/mask.nii.gz").status_code == 404
    assert list(made.iterdir()) == []


def test_an_old_calibration_has_no_bands_and_everything_else(app, client):
    app.score = calibration(tails=())
    answer = result(client)
    assert answer["bands"] == []
    assert "bands" not in answer["files"]
    assert client.get("/anomaly/results/a/bands.nii.gz").status_code == 400


def test_a_brain_of_one_grey_value_still_has_a_window():
    volume = type("Volume", (), {"data": np.full((1, 2, 2, 2), 7.0, np.float32)})()
    assert results.display_window(volume, np.ones((2, 2, 2), bool)) == [7.0, 8.0]
    assert results.display_window(volume, np.zeros((2, 2, 2), bool)) == [7.0, 8.0]


def test_scans_that_an_archive_is_slow_to_give_do_not_hold_up_other_results(app, client, monkeypatch):
    come, held = threading.Event(), app.store.get_image_uri

    def slow(image):
        if image == "b":
            come.wait(240)
        return held(image)

    monkeypatch.setattr(app.store, "get_image_uri", slow)
    waiting = [threading.Thread(target=client.get, args=("/anomaly/results/b",)) for _ in range(results.AT_ONCE)]
    for thread in waiting:
        thread.start()
    quick = threading.Thread(target=client.get, args=("/anomaly/results/a",))
    quick.start()
    quick.join(120)
    try:
        assert not quick.is_alive()
    finally:
        come.set()
        for thread in (*waiting, quick):
            thread.join()
