"""What 3D Slicer's extension does with its client, against a real server started by the stock command."""

import os
import shutil
import time

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk

from tests.monailabel_app.io.test_dicom_seg import ORIENTATIONS, write_series


def geometry(path):
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def test_upload_next_infer_submit_download(client, server, lesion_scan, tmp_path):
    image_id = client.upload_image(str(lesion_scan), "6: t1_mprage sag")["image"]
    assert image_id in client.datastore()["objects"]
    before = client.info()["datastore"]["completed"]

    sample = client.next_sample("first", {})
    assert sample["id"] == "6: t1_mprage sag"
    assert "path" in sample

    file, result = client.infer("one", image_id, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert file.endswith(".nrrd")
    assert geometry(file) == geometry(lesion_scan)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(file))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert result["label_names"] == {"anomaly": 1}
    assert result["lesion_count"] == 1
    assert result["model"]["id"] == "one"
    assert result["settings"]["operating_point"] == "balanced"
    assert result["seconds"]["reconstruct"] == 0.5

    label_info = {"label_info": [{"name": "anomaly", "idx": 1}], "model": "one"}
    client.save_label(image_id, file, "final", label_info)
    assert client.info()["datastore"]["completed"] == before + 1
    saved = client.download_label(image_id, "final")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(saved)), mask)


def test_next_sample_at_random_twice_within_a_second(client):
    assert client.next_sample("random", {})["id"]
    assert client.next_sample("random", {})["id"]


def test_infer_within_a_session_stores_nothing(client, healthy_scan, tmp_path):
    before = set(client.datastore()["objects"])
    session = client.create_session(str(healthy_scan))["session_id"]
    assert client.get_session(session)["image"].endswith("ixi_healthy.nii.gz")
    file, result = client.infer("one", "", {}, session_id=session)
    assert geometry(file) == geometry(healthy_scan)
    assert result["lesion_count"] == 1
    client.remove_session(session)
    assert set(client.datastore()["objects"]) == before


def test_a_dicom_series_as_a_session(server, tmp_path):
    write_series(tmp_path / "series", ORIENTATIONS["sagittal"])
    paths = sorted((tmp_path / "series").iterdir())
    for number, path in enumerate(paths):
        slice_ = pydicom.dcmread(path)
        slice_.PixelData = np.full(slice_.Rows * slice_.Columns, 10 + number, np.uint16).tobytes()
        slice_.save_as(path)
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    session = requests.put(f"{server.url}/session/", files=files, timeout=60).json()["session_id"]
    answer = server.infer("one", params={"session_id": session, "output": "image"})
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    assert nib.load(tmp_path / "mask.nii.gz").shape == (20, 18, 7)


def test_infer_on_an_uploaded_file_stores_nothing(client, healthy_scan, tmp_path):
    before = set(client.datastore()["objects"])
    image = tmp_path / "scan.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(healthy_scan)), str(image))
    file, _ = client.infer("one", "", {"result_extension": ".nii"}, file=str(image))
    assert file.endswith(".nii")
    assert geometry(file) == geometry(image)
    assert set(client.datastore()["objects"]) == before


def test_nothing_found_is_an_empty_label(client, healthy_scan):
    file, result = client.infer("one", "ixi_healthy", {"operating_point": "specific"})
    assert file.endswith(".nii.gz")
    assert geometry(file) == geometry(healthy_scan)
    assert not np.asarray(nib.load(file).dataobj).any()
    assert (result["lesion_count"], result["lesions"]) == (0, [])
    client.save_label("ixi_healthy", file, "final", {})


def test_each_model_of_the_list_answers(client):
    for name in client.info()["models"]:
        assert client.infer(name, "ixi_lesion", {})[1]["model"]["id"] == name.removesuffix("_bands")


def test_every_model_is_offered_again_as_bands_after_all_plain_ones(client):
    models = client.info()["models"]
    assert list(models) == ["one", "two", "one_bands", "two_bands"]
    assert models["one"]["labels"] == {"anomaly": 1}
    assert models["one_bands"]["labels"] == {"low suspicion": 1, "medium suspicion": 2, "high suspicion": 3}
    assert list(models["one_bands"]["labels"].values()) == [1, 2, 3]  # Slicer counts them in this order.
    assert "operating_point" in models["one"]["config"]
    assert "operating_point" not in models["one_bands"]["config"]


def test_bands_are_another_label_of_the_same_finding(client, lesion_scan):
    file, result = client.infer("one_bands", "ixi_lesion", {})
    scan = nib.load(lesion_scan).get_fdata()
    share = scan / scan.max()
    bands = np.asarray(nib.load(file).dataobj)
    assert geometry(file) == geometry(lesion_scan)
    assert set(np.unique(bands)) <= {0, 1, 2, 3}
    assert bands.max() == 3
    assert (share[bands == 3] > 0.95 - 1e-6).all()
    assert (share[bands == 1] <= 0.8 + 1e-6).all()
    assert result["label_names"] == {"low suspicion": 1, "medium suspicion": 2, "high suspicion": 3}
    assert [band["value"] for band in result["bands"]] == [0.6, 0.8, 0.95]
    assert "one_bands" not in client.datastore()["objects"]["ixi_lesion"]["image"]["info"]["anomaly"]


def test_the_images_of_the_last_analysis_are_kept_under_their_tags(client, lesion_scan):
    scan = nib.load(lesion_scan)
    client.infer("one", "ixi_lesion", {"uncertainty": "on"})
    made = nib.load(client.download_label("ixi_lesion", "reconstruction"))
    np.testing.assert_allclose(made.get_fdata(), scan.get_fdata() / 2, atol=1e-3)
    spread = nib.load(client.download_label("ixi_lesion", "uncertainty_map"))
    assert geometry(spread.get_filename()) == geometry(lesion_scan)
    client.infer("one", "ixi_lesion", {})
    labels = client.datastore()["objects"]["ixi_lesion"]["labels"]
    assert {"anomaly_map", "reconstruction"} <= set(labels)
    assert "uncertainty_map" not in labels, "of an earlier analysis"


def test_an_inference_notes_its_result_with_the_scan(client):
    client.infer("one", "ixi_lesion", {"threshold": 0.5})
    record = client.datastore()["objects"]["ixi_lesion"]["image"]["info"]["anomaly"]["one"]
    assert record["lesions"] == 1
    assert record["threshold"] == 0.5


def test_the_anomaly_map_is_kept_and_no_label(client, lesion_scan):
    before = client.info()["datastore"]["completed"]
    client.infer("one", "ixi_lesion", {"operating_point": "sensitive"})
    values = nib.load(client.download_label("ixi_lesion", "anomaly_map"))
    scan = nib.load(lesion_scan)
    assert values.shape == scan.shape
    assert values.get_data_dtype() == np.float32
    data = scan.get_fdata()
    np.testing.assert_allclose(values.get_fdata(), data / data.max(), atol=1e-5)
    kept = client.datastore()["objects"]["ixi_lesion"]["labels"]["anomaly_map"]["info"]["params"]
    assert kept["settings"]["operating_point"] == "sensitive"
    assert kept["calibration"]["id"] == "shipped"
    assert client.info()["datastore"]["completed"] == before


def test_save_label_on_request_keeps_the_mask_as_original(client):
    client.infer("one", "ixi_lesion", {"save_label": True})
    info = client.datastore()["objects"]["ixi_lesion"]["labels"]["original"]["info"]
    assert info["model"] == "one"
    assert info["params"]["lesion_count"] == 1
    assert nib.load(client.download_label("ixi_lesion", "original")).shape == (120, 120, 90)


def test_another_scan_under_a_used_id_does_not_inherit_its_label(client, lesion_scan, healthy_scan):
    client.upload_image(str(lesion_scan), "T1")
    file, _ = client.infer("one", "T1", {})
    client.save_label("T1", file, "final", {"reader": "first"})
    client.upload_image(str(healthy_scan), "T1")

    objects = client.datastore()["objects"]
    assert objects["T1"]["labels"] == {}
    (kept,) = (name for name in objects if name.startswith("T1_replaced_"))
    assert objects[kept]["labels"]["final"]["info"]["reader"] == "first"
    mask = nib.load(client.download_label(kept, "final"))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(file).dataobj))


def test_the_same_scan_uploaded_again_keeps_its_label(client, lesion_scan, tmp_path):
    client.upload_image(str(lesion_scan), "again")
    file, _ = client.infer("one", "again", {})
    client.save_label("again", file, "final", {})
    copy = tmp_path / "copy.nii.gz"
    nib.save(nib.load(lesion_scan), copy)
    client.upload_image(str(copy), "again")
    assert "final" in client.datastore()["objects"]["again"]["labels"]


def test_an_image_copied_into_the_folder_is_seen(client, server, healthy_scan):
    shutil.copy(healthy_scan, f"{server.studies}/dropped.nii.gz")
    for _ in range(600):
        if "dropped" in client.datastore()["objects"]:
            break
        time.sleep(0.1)
    assert client.infer("one", "dropped", {})[1]["lesion_count"] == 1


@pytest.mark.parametrize("compress", [True, False])
def test_compression_is_honoured(client, compress):
    file, _ = client.infer("one", "ixi_lesion", {"result_extension": ".nrrd", "result_compress": compress})
    assert (os.path.getsize(file) < 100_000) == compress


def test_scans_taking_turns_under_one_id_keep_all_their_labels(client, lesion_scan, healthy_scan):
    for turn, scan in enumerate((lesion_scan, healthy_scan, lesion_scan, healthy_scan)):
        client.upload_image(str(scan), "turns")
        file, _ = client.infer("one", "turns", {})
        client.save_label("turns", file, "final", {"turn": turn})
    objects = client.datastore()["objects"]
    turns = [entry["labels"]["final"]["info"]["turn"] for name, entry in objects.items() if name.startswith("turns")]
    assert sorted(turns) == [0, 1, 2, 3]


def test_the_calibration_and_the_drift_of_a_scan_reach_the_client(server):
    model = server.get("/info/").json()["models"]["one"]
    assert "Thresholds: its own calibration." in model["description"]
    assert "bounded" in model["config"]["operating_point"]
    request = {"params": '{"operating_point": "bounded"}'}
    answer = server.infer("one", params={"image": "ixi_healthy", "output": "json"}, data=request)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["settings"]["operating_point"] == "bounded"
    assert result["calibration"] == {"kind": "shipped", "id": "shipped"}
    assert result["drift"] == {"distance": 0.25, "drifted": False}
