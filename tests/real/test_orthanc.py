"""A real Orthanc behind the stock server: series in, DICOM Segmentations back."""

import io
import json
import time
import zipfile

import highdicom as hd
import numpy as np
import pydicom
import pydicom.misc
import pytest
import requests
import SimpleITK as sitk

from monailabel_app.io.geometry import RAS_LPS
from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.real.conftest import STAND_IN
from tests.real.phantom import SERIES, hook_points_lps, mask_points_lps, same_points, with_hook

pytestmark = pytest.mark.orthanc

MORPHOLOGICALLY_ABNORMAL = ("49755003", "SCT")
ANATOMICAL_STRUCTURE = "123037004"


@pytest.fixture
def patient(orthanc, healthy_scan, tmp_path, request):
    """A new patient's sagittal series in the archive, so that what a test submits disturbs no other."""
    volume, _ = with_hook(read_volume(healthy_scan))
    seed = 300 + sum(ord(letter) * place for place, letter in enumerate(request.node.name, 1))
    series = write_series(tmp_path / "series", volume, plane="sagittal", seed=seed)
    orthanc.upload(series.files)
    return series


def infer(server, series, output="image", model=STAND_IN, **params):
    """POST /infer on a stored series."""
    return server.infer(
        model, params={"image": series.series_uid, "output": output}, data={"params": json.dumps(params)}
    )


def submit(server, series, label_file, **params):
    """PUT a final label, as the viewers do."""
    with open(label_file, "rb") as label:
        return requests.put(
            f"{server.url}/datastore/label",
            params={"image": series.series_uid, "tag": "final"},
            data={"params": json.dumps(params)},
            files={"label": (label_file.name, label)},
            timeout=300,
        )


def all_segmentations(orthanc, **query: str) -> list[hd.seg.Segmentation]:
    """The segmentations the archive holds."""
    found = orthanc.find_series(Modality="SEG", **query)
    uids = [item["MainDicomTags"]["SeriesInstanceUID"] for item in found]
    files = [file for uid in uids for file in orthanc.series_files(uid)]
    return [hd.seg.segread(io.BytesIO(file)) for file in files]


def segmentations_of(orthanc, series) -> list[hd.seg.Segmentation]:
    """The segmentations of one study."""
    return all_segmentations(orthanc, StudyInstanceUID=series.study_uid)


def check_segmentation(seg, series, expected, label="anomaly"):
    """Coded as an abnormality, and ``expected`` ((x, y, z) bool) lies on the right source images."""
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert seg.StudyInstanceUID == series.study_uid
    source = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    assert seg.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    assert seg.PatientID == source[0].PatientID
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == series.series_uid
    known = {header.SOPInstanceUID for header in source}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= known

    assert seg.number_of_segments == 1
    segment = seg.get_segment_description(1)
    category, kind = segment.segmented_property_category, segment.segmented_property_type
    assert (category.value, category.scheme_designator) == MORPHOLOGICALLY_ABNORMAL
    assert ANATOMICAL_STRUCTURE not in {category.value, kind.value}
    assert segment.SegmentLabel == label
    algorithm = segment.algorithm_identification[0]
    assert "monailabel-anomaly" in algorithm.AlgorithmName
    assert algorithm.AlgorithmVersion

    order = {header.SOPInstanceUID: header.ImagePositionPatient for header in source}
    frames = seg.get_pixels_by_source_instance(
        list(order), assert_missing_frames_are_empty=True, ignore_spatial_locations=False
    )
    slices = {uid: frames[number, :, :, 0] for number, uid in enumerate(order)}
    lps = RAS_LPS @ series.volume.affine
    for uid, position in order.items():
        index = np.linalg.inv(lps) @ [*map(float, position), 1.0]
        np.testing.assert_array_equal(slices[uid].T > 0, expected[:, :, round(index[2])])


def hook_of(series) -> np.ndarray:
    """(x, y, z) bool in the series' own voxel order."""
    return series.volume.data[0] > 0.9 * series.volume.data.max()


def counts(server) -> dict:
    """What ``/info/`` says about the archive."""
    return server.get("/info/").json()["datastore"]


def eventually(condition, seconds: float = 300.0) -> bool:
    """Whether ``condition()`` becomes true; the server remembers the archive's lists for half a minute."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_server_lists_the_mr_series_of_the_archive_and_picks_one(server, patient, orthanc):
    assert eventually(lambda: counts(server)["total"] == len(orthanc.find_series(Modality="MR")))
    sample = requests.post(f"{server.url}/activelearning/random", json={}, timeout=120).json()
    # What OHIF's "Next Sample" shows, and opens the study by.
    (found,) = orthanc.find_series(SeriesInstanceUID=sample["id"])
    assert found["MainDicomTags"]["Modality"] == sample["Modality"] == "MR"
    study = orthanc.session.get(f"{orthanc.url}/studies/{found['ParentStudy']}", timeout=60).json()
    assert sample["StudyInstanceUID"] == study["MainDicomTags"]["StudyInstanceUID"]
    assert sample["PatientID"] == study["PatientMainDicomTags"]["PatientID"]


@pytest.mark.parametrize("kind", SERIES)
def test_mask_lies_on_the_hook_for_every_kind_of_series(server, hook_series, tmp_path, kind):
    series = hook_series(kind)
    reply = infer(server, series, result_extension=".nrrd")
    assert reply.status_code == 200, reply.text
    answer = tmp_path / "label.nrrd"
    answer.write_bytes(reply.content)
    assert same_points(mask_points_lps(answer), hook_points_lps(series))
    assert sitk.ReadImage(str(answer)).GetSize() == series.volume.shape


def test_result_as_dicom_seg_is_on_the_source_images(server, patient):
    reply = infer(server, patient, output="dicom_seg", label_info=[{"name": "anomaly"}])
    assert reply.status_code == 200, reply.text
    check_segmentation(hd.seg.segread(io.BytesIO(reply.content)), patient, hook_of(patient), label="anomaly 1")


def test_empty_result_as_dicom_seg_is_no_error(server, patient):
    reply = infer(server, patient, output="dicom_seg", operating_point="specific")
    assert reply.status_code == 200, reply.text
    empty = np.zeros(patient.volume.shape, bool)
    check_segmentation(hd.seg.segread(io.BytesIO(reply.content)), patient, empty)


def test_submitted_label_reaches_the_archive_as_a_segmentation(server, orthanc, patient, tmp_path):
    label = tmp_path / "label.nrrd"
    label.write_bytes(infer(server, patient, result_extension=".nrrd").content)
    reply = submit(server, patient, label, label_info=[{"name": "anomaly", "idx": 1}], model=STAND_IN)
    assert reply.status_code == 200, reply.text
    (seg,) = segmentations_of(orthanc, patient)
    check_segmentation(seg, patient, hook_of(patient))
    assert STAND_IN in seg.get_segment_description(1).algorithm_identification[0].AlgorithmName


def test_submitted_empty_label_is_kept_as_looked_at(server, orthanc, patient, tmp_path):
    label = tmp_path / "label.nii.gz"
    reply = infer(server, patient, result_extension=".nii.gz", operating_point="specific")
    label.write_bytes(reply.content)
    assert len(mask_points_lps(label)) == 0
    reply = submit(server, patient, label, label_info=[{"name": "anomaly", "idx": 1}])
    assert reply.status_code == 200, reply.text
    assert segmentations_of(orthanc, patient) == []
    healthy = requests.get(f"{server.url}/anomaly/healthy", timeout=60).json()
    assert healthy["images"][patient.series_uid] == "reviewed"


def test_bare_voxels_as_ohif_sends_them_become_a_segmentation(server, orthanc, patient, tmp_path):
    label = tmp_path / "label.bin"
    label.write_bytes(hook_of(patient).astype(np.uint8).tobytes(order="F"))
    reply = submit(server, patient, label, label_info=[{"name": "anomaly", "idx": 1}])
    assert reply.status_code == 200, reply.text
    (seg,) = segmentations_of(orthanc, patient)
    check_segmentation(seg, patient, hook_of(patient))


def test_a_submitted_series_counts_as_done(server, orthanc, patient, tmp_path):
    label = tmp_path / "label.nrrd"
    label.write_bytes(infer(server, patient, result_extension=".nrrd").content)
    assert submit(server, patient, label).status_code == 200

    def done() -> set[str]:
        # Those that a person submitted; a result that was only stored is no label.
        found = all_segmentations(orthanc)
        labels = [seg for seg in found if seg.SegmentSequence[0].SegmentAlgorithmType != "AUTOMATIC"]
        return {seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in labels}

    def reviewed() -> set[str]:
        return set(requests.get(f"{server.url}/anomaly/healthy", timeout=60).json()["images"])

    assert patient.series_uid in done() - reviewed()
    assert eventually(lambda: counts(server)["completed"] == len(done() | reviewed()))


def test_viewer_finds_the_studies_of_one_patient_only(server, orthanc, hook_series, patient):
    hook_series("axial")
    header = pydicom.dcmread(patient.files[0], stop_before_pixels=True)
    found = server.get(f"/proxy/dicom/qido/studies?PatientID={header.PatientID}").json()
    assert [study["0020000D"]["Value"][0] for study in found] == [patient.study_uid]


@pytest.mark.parametrize("address", ["..%2Finstances", "wado/..%2F..%2Finstances", "qido/%252e%252e/instances"])
def test_viewer_reaches_nothing_outside_the_dicomweb_root(server, address):
    reply = requests.get(f"{server.url}/proxy/dicom/{address}", timeout=60)
    assert reply.status_code in {400, 404}


def test_unknown_series_is_a_404_that_says_so(server):
    reply = server.infer(STAND_IN, params={"image": "1.2.3.4.5"})
    assert reply.status_code == 404
    assert "1.2.3.4.5" in reply.json()["detail"]


@pytest.mark.slow
def test_shipped_model_signs_its_segmentation(shipped_server, shipped_model, lesion_series):
    series = lesion_series("sagittal")
    reply = infer(shipped_server, series, output="dicom_seg", model=shipped_model)
    assert reply.status_code == 200, reply.text
    seg = hd.seg.segread(io.BytesIO(reply.content))
    algorithm = seg.get_segment_description(1).algorithm_identification[0]
    assert shipped_model in algorithm.AlgorithmName
    result = infer(shipped_server, series, output="json", model=shipped_model).json()
    assert result["model"]["hash"][:16] in algorithm.AlgorithmVersion


@pytest.fixture(scope="session")
def stranger(orthanc, shared_data, tmp_path_factory) -> list[pydicom.Dataset]:
    """The headers of another scanner's series in the archive: 384 sagittal slices of 0.67 mm."""
    folder = tmp_path_factory.mktemp("stranger")
    with zipfile.ZipFile(shared_data / "dicom" / "studyforrest_t1.zip") as archive:
        archive.extractall(folder)
    headers = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and pydicom.misc.is_dicom(path):
            headers[path] = pydicom.dcmread(path, stop_before_pixels=True)
    assert orthanc.upload(headers) == 384
    return list(headers.values())


def check_strangers_answer(reply, headers, answer):
    """The label has one slice for each source slice, in its place, and marks something."""
    assert reply.status_code == 200, reply.text
    answer.write_bytes(reply.content)
    image = sitk.ReadImage(str(answer))
    assert image.GetSize() == (headers[0].Columns, headers[0].Rows, len(headers))
    places = np.array(
        [
            image.TransformPhysicalPointToContinuousIndex([float(v) for v in header.ImagePositionPatient])
            for header in headers
        ]
    )
    np.testing.assert_allclose(places[:, :2], 0, atol=0.05)
    np.testing.assert_allclose(np.sort(places[:, 2]), np.arange(len(headers)), atol=0.05)
    assert sitk.GetArrayViewFromImage(image).any()


def ask_for_stranger(server, headers, model):
    """POST /infer on the stranger's series."""
    query = {"image": str(headers[0].SeriesInstanceUID), "output": "image"}
    params = {"result_extension": ".nrrd", "operating_point": "sensitive"}
    return server.infer(model, params=query, data={"params": json.dumps(params)}, timeout=900)


@pytest.mark.slow
def test_a_strangers_series_comes_back_in_its_own_geometry(server, stranger, tmp_path):
    reply = ask_for_stranger(server, stranger, STAND_IN)
    check_strangers_answer(reply, stranger, tmp_path / "label.nrrd")


@pytest.mark.slow
def test_shipped_model_takes_a_strangers_series(shipped_server, shipped_model, stranger, tmp_path):
    reply = ask_for_stranger(shipped_server, stranger, shipped_model)
    check_strangers_answer(reply, stranger, tmp_path / "label.nrrd")
