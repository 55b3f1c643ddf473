"""Whatever is sent, a real server answers with a 4xx that says what is wrong, and goes on serving."""

import json

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.bad_dicom import DICOM_CASES
from tests.bad_files import nrrd, zipped
from tests.bad_files_http import state_of

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def nifti(array, affine=AFFINE):
    return nib.Nifti1Image(np.asarray(array, dtype=np.float32), affine)


def write_text(folder):
    path = folder / "notes.nii.gz"
    path.write_text("this is no image")
    return path


def write_truncated(folder):
    path = folder / "scan.nii.gz"
    nib.save(nifti(np.random.default_rng(0).random((40, 40, 40))), path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def write_empty(folder):
    path = folder / "scan.nii.gz"
    path.write_bytes(b"")
    return path


def write_other_type(folder):
    path = folder / "slides.pdf"
    path.write_bytes(b"%PDF-1.4")
    return path


def write(array):
    def writer(folder):
        path = folder / "scan.nii.gz"
        nib.save(nifti(array), path)
        return path

    return writer


def with_nan():
    data = np.random.default_rng(0).random((32, 32, 32))
    data[:] = np.nan
    return data


FILES = {
    "text": (write_text, "expected"),
    "truncated": (write_truncated, "expected"),
    "empty file": (write_empty, "empty file"),
    "other type": (write_other_type, ".pdf"),
    "2-D": (write(np.ones((32, 32))), "3-D"),
    "4-D": (write(np.random.default_rng(0).random((16, 16, 16, 5))), "3-D"),
    "NaN": (write(with_nan()), "NaN"),
    "constant": (write(np.full((32, 32, 32), 7.0)), "same value"),
    "all zero": (write(np.zeros((32, 32, 32))), "every voxel zero"),
}


@pytest.fixture
def still_serving(server):
    yield
    assert server.infer("one", params={"image": "ixi_healthy", "output": "json"}).status_code == 200


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_refused_with_the_reason(server, tmp_path, kind):
    writer, words = FILES[kind]
    path = writer(tmp_path)
    with path.open("rb") as handle:
        answer = server.infer("one", files={"file": (path.name, handle)})
    assert answer.status_code == 400, answer.text
    assert words.lower() in answer.json()["detail"].lower()
    assert str(path.parent) not in answer.text


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_image_does_not_get_into_the_datastore(server, tmp_path, kind):
    before = state_of(server.studies)
    writer, words = FILES[kind]
    path = writer(tmp_path)
    with path.open("rb") as handle:
        files = {"file": (path.name, handle)}
        answer = requests.put(f"{server.url}/datastore/image", params={"image": f"bad {kind}"}, files=files, timeout=60)
    assert answer.status_code == 400
    assert words.lower() in answer.json()["detail"].lower()
    assert state_of(server.studies) == before


def test_a_session_of_bad_files_is_refused_when_it_is_analysed(server):
    files = {"files": ("series.zip", zipped(DICOM_CASES["a slice missing"][0]()))}
    session = requests.put(f"{server.url}/session/", params={"uncompress": "true"}, files=files, timeout=60).json()
    answer = server.infer("one", params={"session_id": session["session_id"]})
    assert answer.status_code == 400
    assert "1 missing" in answer.json()["detail"]


@pytest.mark.parametrize("file", ["/etc/passwd", "ixi_healthy.nii.gz", "LIST"])
def test_a_header_that_names_a_file_of_the_server_is_refused(server, file):
    content = nrrd(f"data file: {file}", b"")
    answer = server.infer("one", files={"file": ("scan.nrrd", content)})
    assert answer.status_code == 400
    assert "names another file" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("image", "status"),
    [
        ("no_such_image", 404),
        ("/etc/hostname", 400),
        ("../../etc/hostname", 400),
        ("labels/final/x", 400),
        (".lock", 400),
        ("..", 400),
        ("a\x00b", 400),
        ("x" * 200, 400),
        ("", 400),
    ],
)
def test_only_ids_of_the_datastore_are_opened(server, image, status, still_serving):
    answer = server.infer("one", params={"image": image})
    assert answer.status_code == status
    assert "image" in answer.json()["detail"]


def test_a_path_in_the_parameters_is_not_opened(server, healthy_scan):
    params = {"params": json.dumps({"image": str(healthy_scan)})}
    assert server.infer("one", data=params).status_code == 400
    answer = server.infer("one", params={"image": "no_such_image"}, data=params)
    assert answer.status_code == 404


def test_an_unknown_model_is_named_with_the_known_ones(server, still_serving):
    answer = server.infer("three", params={"image": "ixi_healthy"})
    assert answer.status_code == 404
    assert "'three'" in answer.json()["detail"]
    assert "one, two" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("operating_point", "extreme", "balanced, sensitive, specific"),
        ("score", "l2", "l1, ssim_ensemble"),
        ("smoothing", 3, "standard, none, strong"),
        ("min_lesion_volume", "a lot", "0.1 ml, 0 ml"),
        ("min_lesion_volume", -1, "0.1 ml, 0 ml"),
        ("seed", "x", "whole number"),
        ("device", "tpu", "auto, "),
        ("result_extension", ".png", ".nii.gz"),
    ],
)
def test_an_unknown_option_value_is_refused_with_the_allowed_ones(server, option, value, allowed):
    answer = server.infer("one", params={"image": "ixi_healthy"}, data={"params": json.dumps({option: value})})
    assert answer.status_code == 400
    assert option in answer.json()["detail"]
    assert allowed in answer.json()["detail"]


def test_the_options_as_offered_are_accepted(server):
    config = server.get("/info/").json()["models"]["one"]["config"]
    answer = server.infer("one", params={"image": "ixi_healthy"}, data={"params": json.dumps(config)})
    assert answer.status_code == 200


@pytest.mark.parametrize("text", ["{", "[1, 2]", '"text"'])
def test_parameters_that_are_no_json_object_are_refused(server, text):
    answer = server.infer("one", params={"image": "ixi_healthy"}, data={"params": text})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["detail"]


def test_an_unknown_session_is_refused(server):
    assert server.infer("one", params={"session_id": "0-1"}).status_code == 404
    assert server.infer("one", params={"session_id": "../x"}).status_code == 400


def test_a_damaged_archive_for_a_session_is_refused(server):
    answer = requests.put(
        f"{server.url}/session/", params={"uncompress": "true"}, files={"files": ("scans.zip", b"PK no zip")}
    )
    assert answer.status_code == 400
    assert "archive" in answer.json()["detail"]


def test_a_segmentation_object_needs_an_archive(server):
    answer = server.infer("one", params={"image": "ixi_healthy", "output": "dicom_seg"})
    assert answer.status_code == 400
    assert "DICOM" in answer.json()["detail"]


@pytest.mark.parametrize("image", ["../../evil", "/tmp/evil", "a/b", ".hidden", "a..b"])
def test_an_upload_cannot_leave_the_studies_folder(server, lesion_scan, image):
    with lesion_scan.open("rb") as handle:
        answer = requests.put(
            f"{server.url}/datastore/image", params={"image": image}, files={"file": ("scan.nii.gz", handle)}
        )
    assert answer.status_code == 400
    assert "image id" in answer.json()["detail"]


def test_an_upload_under_an_unsafe_file_name_is_refused(server):
    files = {"file": ("..hidden.nii.gz", b"x")}
    assert requests.put(f"{server.url}/datastore/image", files=files).status_code == 400


def test_an_upload_that_is_no_image_type_is_refused(server):
    answer = requests.put(
        f"{server.url}/datastore/image", params={"image": "code"}, files={"file": ("code.py", b"import os")}
    )
    assert answer.status_code == 400
    assert ".nii.gz" in answer.json()["detail"]


def test_a_label_cannot_leave_the_studies_folder(server, lesion_mask):
    for params in ({"image": "ixi_healthy", "tag": "../../x"}, {"image": "../x", "tag": "final"}):
        with lesion_mask.open("rb") as handle:
            files = {"label": ("mask.nii.gz", handle)}
            answer = requests.put(f"{server.url}/datastore/label", params=params, files=files)
        assert answer.status_code == 400


def test_a_label_for_an_unknown_image_is_refused(server, lesion_mask):
    with lesion_mask.open("rb") as handle:
        files = {"label": ("mask.nii.gz", handle)}
        answer = requests.put(f"{server.url}/datastore/label", params={"image": "nobody"}, files=files)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/datastore/image?image=nobody", 404),
        ("GET", "/datastore/label?label=nobody&tag=final", 404),
        ("DELETE", "/datastore/image?id=nobody", 404),
        ("DELETE", "/datastore/label?id=nobody&tag=final", 404),
        ("PUT", "/datastore/image/info?image=nobody", 404),
        ("GET", "/session/nobody", 404),
        ("DELETE", "/session/..%2F..%2Fx", 400),
        ("POST", "/activelearning/nobody", 400),
        ("POST", "/infer/wsi/one?image=ixi_healthy", 400),
        ("PUT", "/model/one", 422),
        ("POST", "/reload", 403),
        ("GET", "/nowhere", 404),
    ],
)
def test_every_refusal_is_json_that_says_why(server, method, path, status, still_serving):
    answer = requests.request(method, server.url + path, timeout=30)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("path", ["/train/nobody", "/scoring/nothing", "/batch/infer/nobody"])
def test_work_under_an_unknown_name_is_refused_before_it_starts(server, path):
    answer = requests.post(server.url + path, json={}, timeout=30)
    assert answer.status_code == 404
    assert "available" in answer.json()["detail"]
