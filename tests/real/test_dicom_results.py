"""What a shipped model found on a series of a real archive, stored there and read back by readers of others."""

import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import highdicom as hd
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from dicomweb_client import DICOMwebClient
from pydicom.sr.codedict import codes

from lib.archive_client import connect
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.errors import ArchiveRefused, ArchiveUnreachable
from monailabel_app.io.images import read_volume
from tests.dicom_factory import PATIENT_NAME, write_series
from tests.dicom_results import errors_of, run_dcmqi

pytestmark = pytest.mark.orthanc

MODEL = "intensity_t1"
KINDS = ("segmentation", "parametric_map", "report")


def store(server, series, **params):
    """POST /anomaly/dicom."""
    body = {"model": MODEL, "params": params}
    return requests.post(f"{server.url}/anomaly/dicom/{series.series_uid}", json=body, timeout=300)


def analyse(server, series, **params):
    """POST /infer, as JSON."""
    query = {"image": series.series_uid, "output": "json"}
    return server.infer(MODEL, params=query, data={"params": json.dumps(params)}, timeout=900)


@pytest.fixture(scope="module")
def stored(orthanc, shipped_server, lesion_series):
    """The result, and its three objects as the archive hands them out over DICOMweb."""
    series = lesion_series("coronal")
    before = requests.get(
        f"{shipped_server.url}/anomaly/dicom/{series.series_uid}/report.dcm?model={MODEL}", timeout=60
    )
    assert before.status_code == 404
    assert "run" in before.json()["detail"]
    result = analyse(shipped_server, series).json()
    reply = store(shipped_server, series)
    assert reply.status_code == 200, reply.text
    client = DICOMwebClient(url=orthanc.dicomweb_url)
    objects = {
        item["object"]: client.retrieve_instance(
            series.study_uid, item["series_instance_uid"], item["sop_instance_uid"]
        )
        for item in reply.json()["stored"]
    }
    return series, result, objects


@pytest.fixture
def files(stored, tmp_path):
    """The objects of the archive as files."""
    for kind, item in stored[2].items():
        item.save_as(tmp_path / f"{kind}.dcm", write_like_original=False)
    return tmp_path


def reread(item) -> io.BytesIO:
    buffer = io.BytesIO()
    item.save_as(buffer, write_like_original=False)
    buffer.seek(0)
    return buffer


def test_what_comes_back_is_what_was_found(stored):
    series, result, objects = stored
    segmentation = hd.seg.segread(reread(objects["segmentation"]))
    voxel_ml = series.volume.voxel_volume_mm3 / 1000
    planes = [
        item.ReferencedSOPInstanceUID for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ]
    for lesion in result["lesions"]:
        drawn = segmentation.get_pixels_by_source_instance(planes, segment_numbers=[lesion["index"]])
        assert np.count_nonzero(drawn) * voxel_ml == pytest.approx(lesion["volume_ml"], rel=1e-6)
        described = segmentation.get_segment_description(lesion["index"])
        assert described.segmented_property_category.value == "49755003"
        assert MODEL in described.algorithm_identification[0].AlgorithmName
        assert result["model"]["hash"][:16] in described.algorithm_identification[0].AlgorithmVersion
    report = hd.sr.srread(reread(objects["report"]))
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(result["lesions"]) > 0
    for lesion, group in zip(result["lesions"], groups, strict=True):
        (volume,) = group.get_measurements(codes.SCT.Volume)
        assert float(volume.value) == pytest.approx(lesion["volume_ml"])
        segment = segmentation.get_segment_description(lesion["index"])
        assert segment.tracking_uid == group.tracking_uid
    peak = max(lesion["peak_score"] for lesion in result["lesions"])
    assert objects["parametric_map"].pixel_array.max() >= peak * (1 - 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_validator_finds_no_error_in_what_the_archive_holds(files, kind):
    assert errors_of(files / f"{kind}.dcm") == []


def test_the_readers_of_3d_slicer_get_the_same(stored, files):
    _, result, objects = stored
    out = files / "out"
    out.mkdir()
    segmentation, values = files / "segmentation.dcm", files / "parametric_map.dcm"
    run_dcmqi("segimage2itkimage", "--inputDICOM", segmentation, "--outputDirectory", out, "-t", "nrrd")
    drawn = [sitk.ReadImage(str(path)) for path in sorted(out.glob("*.nrrd"))]
    voxels = sum(int((sitk.GetArrayViewFromImage(image) > 0).sum()) for image in drawn)
    voxel_ml = float(np.prod(drawn[0].GetSpacing())) / 1000
    assert voxels * voxel_ml == pytest.approx(result["anomaly_volume_ml"], rel=1e-4)
    (out / "map").mkdir()
    run_dcmqi("paramap2itkimage", "--inputDICOM", values, "--outputDirectory", out / "map", "-t", "nrrd")
    (image,) = (sitk.ReadImage(str(path)) for path in (out / "map").glob("*.nrrd"))
    assert sitk.GetArrayViewFromImage(image).max() == pytest.approx(objects["parametric_map"].pixel_array.max())
    run_dcmqi("tid1500reader", "--inputDICOM", files / "report.dcm", "--outputMetadata", out / "report.json")
    assert json.loads((out / "report.json").read_text())["Measurements"]


def test_sending_again_adds_nothing_and_the_series_is_not_labelled_by_it(orthanc, shipped_server, stored):
    series, _, objects = stored
    there = orthanc.find_series(StudyInstanceUID=series.study_uid)
    again = store(shipped_server, series).json()["stored"]
    assert {item["sop_instance_uid"] for item in again} == {str(item.SOPInstanceUID) for item in objects.values()}
    assert len(orthanc.find_series(StudyInstanceUID=series.study_uid)) == len(there)
    query = {"model": MODEL}
    for kind in KINDS:
        reply = requests.get(
            f"{shipped_server.url}/anomaly/dicom/{series.series_uid}/{kind}.dcm", params=query, timeout=60
        )
        assert pydicom.dcmread(io.BytesIO(reply.content)).SOPInstanceUID == objects[kind].SOPInstanceUID
    datastore = requests.get(f"{shipped_server.url}/datastore/", params={"output": "all"}, timeout=60).json()
    assert "final" not in datastore["objects"][series.series_uid]["labels"]
    unlabelled = requests.post(f"{shipped_server.url}/activelearning/first", json={}, timeout=60).json()
    assert unlabelled.get("id")


def test_a_result_as_dicom_seg_has_a_segment_per_lesion(shipped_server, stored):
    series, result, _ = stored
    reply = shipped_server.infer(MODEL, params={"image": series.series_uid, "output": "dicom_seg"}, timeout=900)
    assert reply.status_code == 200, reply.text
    seg = hd.seg.segread(io.BytesIO(reply.content))
    named = [f"anomaly {lesion['index']}: {lesion['region']}" for lesion in result["lesions"]]
    assert [str(segment.SegmentLabel) for segment in seg.SegmentSequence] == named


def test_nothing_found_is_a_report_that_says_so_and_no_segmentation(orthanc, shipped_server, stored):
    series, _, _ = stored
    before = {item["ID"] for item in orthanc.find_series(StudyInstanceUID=series.study_uid, Modality="SEG")}
    query = {"model": MODEL, "threshold": 1000}
    url = f"{shipped_server.url}/anomaly/dicom/{series.series_uid}"
    missing = requests.get(f"{url}/segmentation.dcm", params=query, timeout=60)
    assert (missing.status_code, "report" in missing.json()["detail"]) == (404, True)
    reply = store(shipped_server, series, threshold=1000)
    answer = reply.json()
    assert reply.status_code == 200, reply.text
    assert [item["object"] for item in answer["stored"]] == ["parametric_map", "report"]
    assert answer["left_out"][0]["object"] == "segmentation"
    assert answer["summary"].startswith("No anomaly was found")
    assert {i["ID"] for i in orthanc.find_series(StudyInstanceUID=series.study_uid, Modality="SEG")} == before


def capture(_, dataset):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
        delattr(dataset, name)


def several_frames(_, dataset):
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2


def no_spacing(_, dataset):
    del dataset.PixelSpacing


def no_frame_of_reference(_, dataset):
    del dataset.FrameOfReferenceUID


@pytest.mark.parametrize("edit", [capture, several_frames, no_spacing, no_frame_of_reference], ids=lambda e: e.__name__)
def test_a_series_that_is_no_scan_is_refused_by_name(orthanc, shipped_server, healthy_scan, tmp_path, edit):
    seed = 950 + len(edit.__name__)
    series = write_series(tmp_path / "series", read_volume(healthy_scan), seed=seed, edit=edit)
    orthanc.upload(series.files)
    replies = [analyse(shipped_server, series), store(shipped_server, series)]
    if edit is no_frame_of_reference:
        # It can be analysed; only what refers to it cannot be written.
        assert replies.pop(0).status_code == 200
    for reply in replies:
        assert reply.status_code == 400, reply.text
        assert "expected" in reply.json()["detail"]
        assert "PHANTOM" not in reply.text
    log = shipped_server.log.read_text(errors="replace")
    assert PATIENT_NAME not in log
    assert f"PHANTOM-{seed}" not in log


class Between(BaseHTTPRequestHandler):
    """A gateway before the archive that lets ``passing`` objects through, then refuses or hangs up."""

    archive, passing, status = "", 0, 403

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        cls = type(self)
        if cls.passing > 0:
            cls.passing -= 1
            headers = {"Content-Type": self.headers["Content-Type"]}
            answer = requests.post(cls.archive + self.path, data=body, headers=headers, timeout=60)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.content)
        elif cls.status:
            self.send_response(cls.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.connection.close()

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(
    ("status", "error", "told"), [(403, ArchiveRefused, "read-only"), (0, ArchiveUnreachable, "did not answer")]
)
def test_an_archive_behind_a_gateway_that_stops_is_named(orthanc, stored, files, tmp_path, status, error, told):
    gateway = type("Gateway", (Between,), {"archive": orthanc.url, "passing": 1, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), gateway) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        client = connect(f"http://127.0.0.1:{httpd.server_port}/dicom-web")
        datastore = AnomalyDICOMWebDatastore(client, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))
        with pytest.raises(error, match=told) as caught:
            datastore.store([files / f"{kind}.dcm" for kind in ("segmentation", "report")])
        assert "1 of 2 objects had been stored" in str(caught.value)
        httpd.shutdown()
