"""A finding as DICOM objects, written once, and their way to an archive that may refuse or go away."""

import json
import os
import time
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from retrying import RetryError

from lib import dicom_results
from lib.dicom_results import OBJECTS, check_objects, labelled_series, segments_of_result, write_objects
from lib.dicom_store import store_objects
from lib.errors import ArchiveRefused, ArchiveUnreachable, InvalidRequest, NothingFound
from monailabel_app.errors import UnreadableVolume
from monailabel_app.io.dicom_lesions import MOST_SEGMENTS
from tests.dicom_results import empty_finding, errors_of, small_finding, small_series


@pytest.fixture
def series(tmp_path):
    return small_series(tmp_path / "series")


@pytest.fixture
def folder(series, tmp_path):
    return tmp_path / "series"


def header(item):
    return pydicom.dcmread(item.path)


def test_the_objects_of_a_finding_refer_to_each_other_whichever_is_asked_for_first(series, folder, tmp_path):
    finding = small_finding(series)
    (report,) = write_objects(finding, folder, tmp_path / "kept", ("report",))
    segmentation, _, again = write_objects(finding, folder, tmp_path / "kept")
    assert [item.kind for item in (segmentation, again)] == ["segmentation", "report"]
    assert again.identity() == report.identity()
    groups = hd.sr.srread(report.path).content.get_volumetric_roi_measurement_groups()
    referred = {
        item.referenced_sop_instance_uid
        for group in groups
        for item in group.referenced_segment
        if item.value_type == hd.sr.ValueTypeValues.IMAGE
    }
    assert referred == {segmentation.identity()["sop_instance_uid"]}
    labels = [str(segment.SegmentLabel) for segment in header(segmentation).SegmentSequence]
    assert labels == ["anomaly 1: right middle frontal gyrus", "anomaly 2: left caudate"]
    assert [group.tracking_identifier for group in groups] == ["anomaly 1", "anomaly 2"]


def test_the_same_finding_is_the_same_instances_and_another_one_is_not(series, folder, tmp_path):
    finding = small_finding(series)
    first = [item.identity() for item in write_objects(finding, folder, tmp_path / "kept")]
    slower = replace(finding, seconds={"reconstruct": 99.0})
    assert [item.identity() for item in write_objects(slower, folder, tmp_path / "kept")] == first
    moved = replace(finding, threshold=2.5)
    other = [item.identity() for item in write_objects(moved, folder, tmp_path / "kept")]
    assert not {item["sop_instance_uid"] for item in first} & {item["sop_instance_uid"] for item in other}


def test_every_object_is_valid(series, folder, tmp_path):
    written = write_objects(small_finding(series), folder, tmp_path / "kept")
    written += write_objects(empty_finding(series), folder, tmp_path / "kept")
    assert {item.path.name: errors_of(item.path) for item in written} == {f"{kind}.dcm": [] for kind in OBJECTS}


def test_nothing_found_gives_a_report_that_says_so_and_no_segmentation(series, folder, tmp_path):
    written = write_objects(empty_finding(series), folder, tmp_path / "kept")
    assert [item.kind for item in written] == ["parametric_map", "report"]
    (said,) = hd.sr.utils.find_content_items(hd.sr.srread(written[-1].path), name=codes.DCM.Summary, recursive=True)
    assert said.TextValue.startswith("No anomaly was found")
    with pytest.raises(NothingFound, match="report"):
        write_objects(empty_finding(series), folder, tmp_path / "kept", ("segmentation",))


def test_more_lesions_than_a_viewer_can_number_are_one_segment(series):
    finding = small_finding(series)
    many = [replace(finding.lesions[0], index=number) for number in range(1, MOST_SEGMENTS + 2)]
    label, names, _ = dicom_results.segments_of(finding.mask, finding.affine, many)
    assert set(np.unique(label)) == {0, 1}
    assert names == {1: "anomaly"}


def test_a_result_is_drawn_by_lesion_and_bands_by_their_names(series):
    finding = small_finding(series)
    result = {"label_names": {"anomaly": 1}, **json.loads(json.dumps(finding.to_json()))}
    label, names, labels = segments_of_result(finding.mask, finding.affine, result, {})
    assert (len(np.unique(label)), names) == (3, {1: "anomaly 1", 2: "anomaly 2"})
    assert labels[2] == "anomaly 2: left caudate"
    bands = finding.mask * 2
    result["label_names"] = {"low suspicion": 1, "medium suspicion": 2, "high suspicion": 3}
    label, names, labels = segments_of_result(bands, finding.affine, result, {1: "anomaly"})
    np.testing.assert_array_equal(label, bands)
    assert (names[2], labels) == ("medium suspicion", {})


def test_a_result_that_nobody_reviewed_is_no_label(series, folder, tmp_path):
    (item,) = write_objects(small_finding(series), folder, tmp_path / "kept", ("segmentation",))
    drawn = header(item)
    assert labelled_series(drawn.to_json_dict()) == ""
    for segment in drawn.SegmentSequence:
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    assert labelled_series(drawn.to_json_dict()) == series.series_uid
    drawn.Manufacturer = "another"
    for segment in drawn.SegmentSequence:
        segment.SegmentAlgorithmType = "AUTOMATIC"
    assert labelled_series(drawn.to_json_dict()) == series.series_uid


def test_a_report_is_not_stored_without_the_segmentation_it_refers_to():
    assert check_objects(None) == check_objects([]) == OBJECTS
    assert check_objects(["report"]) == ("segmentation", "report")
    assert check_objects(["parametric_map"]) == ("parametric_map",)
    for wanted in (["picture"], {"report": True}, [3]):
        with pytest.raises(InvalidRequest, match="parametric_map"):
            check_objects(wanted)


def test_sets_are_few_and_not_kept_for_ever(series, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_results, "KEPT_SETS", 2)
    kept = tmp_path / "kept"
    for threshold in (1.0, 2.0, 3.0, 4.0):
        write_objects(small_finding(series, threshold=threshold), folder, kept, ("segmentation",))
        time.sleep(0.01)
    sets = [path for path in kept.iterdir() if path.is_dir()]
    assert len(sets) == 2
    assert sets[0].stat().st_mode & 0o77 == 0
    old = time.time() - dicom_results.KEPT_SECONDS - 1
    os.utime(sets[0], (old, old))
    write_objects(small_finding(series, threshold=5.0), folder, kept, ("segmentation",))
    assert not sets[0].exists()


def test_an_old_set_that_is_used_again_is_not_removed_by_another_request_meanwhile(
    series, folder, tmp_path, monkeypatch
):
    kept, written = tmp_path / "kept", dicom_results._written
    (first,) = write_objects(small_finding(series), folder, kept, ("segmentation",))
    old = time.time() - dicom_results.KEPT_SECONDS - 1
    os.utime(first.path.parent, (old, old))

    def meanwhile(*args):
        path = written(*args)
        dicom_results._purge(kept)
        return path

    monkeypatch.setattr(dicom_results, "_written", meanwhile)
    (again,) = write_objects(small_finding(series), folder, kept, ("segmentation",))
    assert again.path.is_file()


def drop(*names):
    def edit(_, dataset):
        for name in names:
            delattr(dataset, name)

    return edit


def capture(_, dataset):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
        delattr(dataset, name)


def no_age(_, dataset):
    dataset.add_new("PatientAge", "AS", "42")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (drop("FrameOfReferenceUID"), "FrameOfReferenceUID"),
        (drop("PixelSpacing", "ImageOrientationPatient"), "PixelSpacing"),
        (capture, "Secondary Capture Image Storage"),
        (drop("SOPClassUID"), "SOPClassUID"),
    ],
)
def test_a_series_that_cannot_carry_results_is_named(tmp_path, edit, told):
    series = small_series(tmp_path / "series")
    finding = small_finding(series)
    for path in series.files:
        dataset = pydicom.dcmread(path)
        edit(0, dataset)
        dataset.save_as(path)
    for kind in OBJECTS:
        with pytest.raises(UnreadableVolume, match=told) as caught:
            write_objects(finding, tmp_path / "series", tmp_path / "kept", (kind,))
        assert "PHANTOM" not in str(caught.value)


@pytest.mark.parametrize(
    "missing",
    ["PatientName", "PatientID", "StudyDate", "StudyID", "AccessionNumber", "Manufacturer", "SliceThickness"],
)
def test_what_scanners_leave_out_does_not_matter(tmp_path, missing):
    series = small_series(tmp_path / "series")
    for path in series.files:
        dataset = pydicom.dcmread(path)
        delattr(dataset, missing)
        dataset.save_as(path)
    assert len(write_objects(small_finding(series), tmp_path / "series", tmp_path / "kept")) == 3


class Archive:
    """Stores what it is sent until ``fail`` says otherwise."""

    def __init__(self, fail=None, after=0):
        self.stored, self.fail, self.after, self.holds = [], fail, after, []

    def search_for_instances(self, study, series, search_filters):
        wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": series, **search_filters}
        return [item.to_json_dict() for item in self.holds if all(item[k].value == v for k, v in wanted.items())]

    def store_instances(self, datasets):
        if len(self.stored) >= self.after and self.fail is not None:
            if isinstance(self.fail, BaseException):
                raise self.fail
            return self.fail
        self.stored += datasets
        return Dataset()


def answer(code):
    response = requests.Response()
    response.status_code = code
    return requests.HTTPError(response=response)


def refused(reason):
    item = Dataset()
    item.FailureReason = reason
    found = Dataset()
    found.FailedSOPSequence = [item]
    return found


@pytest.fixture
def files(series, folder, tmp_path):
    return [item.path for item in write_objects(small_finding(series), folder, tmp_path / "kept")]


def test_objects_are_sent_in_order(files):
    archive = Archive()
    store_objects(archive, files)
    assert [dataset.Modality for dataset in archive.stored] == ["SEG", "OT", "SR"]


@pytest.mark.parametrize(
    ("fail", "error", "told"),
    [
        (requests.ConnectionError("reset"), ArchiveUnreachable, "did not answer"),
        (requests.Timeout("slow"), ArchiveUnreachable, "Timeout"),
        (ConnectionResetError(), ArchiveUnreachable, "ConnectionResetError"),
        (RetryError(None), ArchiveUnreachable, "too busy"),
        (answer(502), ArchiveUnreachable, "gateway"),
        (answer(403), ArchiveRefused, "read-only"),
        (answer(405), ArchiveRefused, "read-only"),
        (answer(413), ArchiveRefused, "size"),
        (answer(409), ArchiveRefused, "HTTP 409"),
        (ValueError("a page"), ArchiveRefused, "cannot be read"),
        (refused(0xA700), ArchiveRefused, "no space"),
        (refused(0x0122), ArchiveRefused, "kind of object"),
        (refused(0xBEEF), ArchiveRefused, "0xbeef"),
    ],
)
def test_an_archive_that_fails_in_mid_transfer_is_named_with_what_it_has(files, fail, error, told):
    archive = Archive(fail, after=1)
    with pytest.raises(error, match=told) as caught:
        store_objects(archive, files)
    assert "1 of 3 objects had been stored" in str(caught.value)
    assert caught.value.status == 502


def test_an_object_that_is_there_already_is_stored(files):
    store_objects(Archive(refused(0x0111)), files)
    store_objects(Archive(refused(0xB00E)), files)


def conflict(*reasons):
    """HTTP 409 as Azure's archive (with a reason) or Google's (a text) answers."""
    response = requests.Response()
    response.status_code = 409
    failed = {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]}
    response._content = json.dumps({"00081198": failed}).encode() if reasons else b"instance exists"
    return requests.HTTPError(response=response)


def test_a_conflict_with_itself_is_stored_and_another_one_is_refused(files):
    store_objects(Archive(conflict(0xB00E)), files)
    store_objects(Archive(conflict(0x0111)), files)
    with pytest.raises(ArchiveRefused, match="409"):
        store_objects(Archive(conflict(0x0111, 0xA700)), files)
    archive = Archive(conflict())
    with pytest.raises(ArchiveRefused, match="409"):
        store_objects(archive, files)
    archive.holds = [pydicom.dcmread(path) for path in files]
    store_objects(archive, files)
    archive.holds = archive.holds[:1]
    with pytest.raises(ArchiveRefused, match="1 of 3"):
        store_objects(archive, files)
