"""Segmentation, anomaly map and report of one finding, sent to a real archive and read back from it."""

import io

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.sr.codedict import codes

from monailabel_app.io.dicom_lesions import number_lesions
from monailabel_app.io.dicom_parametric_map import write_parametric_map
from monailabel_app.io.dicom_seg import write_dicom_seg
from monailabel_app.io.dicom_sr import write_dicom_sr
from tests.dicom_results import ALGORITHM, MODEL_HASH, empty_finding, small_finding, small_series

pytestmark = pytest.mark.orthanc


def send(orthanc, paths) -> None:
    """STOW-RS, as the app's own client does it."""
    client = DICOMwebClient(url=orthanc.dicomweb_url)
    answer = client.store_instances([pydicom.dcmread(path) for path in paths])
    assert not answer.get("FailedSOPSequence")
    assert len(answer.ReferencedSOPSequence) == len(paths)


def fetch(orthanc, series_uid: str) -> bytes:
    """The one instance of a series of the archive."""
    (stored,) = orthanc.series_files(series_uid)
    return stored


def test_the_three_objects_of_a_finding_survive_the_archive(orthanc, tmp_path):
    series = small_series(tmp_path / "series", "sagittal", seed=901)
    orthanc.upload(series.files)
    finding = small_finding(series)
    seg, pm, sr = (tmp_path / name for name in ("seg.dcm", "map.dcm", "report.dcm"))
    label, names = number_lesions(finding)
    uids = [
        write_dicom_seg(seg, label, finding.affine, tmp_path / "series", ALGORITHM, names),
        write_parametric_map(pm, finding.anomaly_map, finding.affine, tmp_path / "series", ALGORITHM, MODEL_HASH),
        write_dicom_sr(sr, finding, tmp_path / "series", ALGORITHM, seg),
    ]
    send(orthanc, [seg, pm, sr])

    found = {
        item["MainDicomTags"]["SeriesInstanceUID"]: item["MainDicomTags"]["Modality"]
        for item in orthanc.find_series(StudyInstanceUID=series.study_uid)
    }
    assert [found[uid] for uid in uids] == ["SEG", "OT", "SR"]
    assert set(found) == {series.series_uid, *uids}

    stored_map = pydicom.dcmread(io.BytesIO(fetch(orthanc, uids[1])))
    np.testing.assert_array_equal(stored_map.pixel_array, pydicom.dcmread(pm).pixel_array)
    assert stored_map.pixel_array.max() == finding.anomaly_map.max()

    segmentation = hd.seg.segread(io.BytesIO(fetch(orthanc, uids[0])))
    report = hd.sr.srread(io.BytesIO(fetch(orthanc, uids[2])))
    groups = report.content.get_volumetric_roi_measurement_groups()
    for lesion, group in zip(finding.lesions, groups, strict=True):
        (volume,) = group.get_measurements(codes.SCT.Volume)
        assert float(volume.value) == pytest.approx(lesion.volume_ml)
        (item,) = [item for item in group.referenced_segment if item.value_type == hd.sr.ValueTypeValues.IMAGE]
        assert item.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        segment = segmentation.get_segment_description(int(item.ReferencedSOPSequence[0].ReferencedSegmentNumber))
        assert segment.tracking_uid == group.tracking_uid


def test_a_report_of_nothing_found_is_taken_by_the_archive(orthanc, tmp_path):
    series = small_series(tmp_path / "series", "coronal", seed=902)
    orthanc.upload(series.files)
    uid = write_dicom_sr(tmp_path / "report.dcm", empty_finding(series), tmp_path / "series", ALGORITHM)
    send(orthanc, [tmp_path / "report.dcm"])
    report = hd.sr.srread(io.BytesIO(fetch(orthanc, uid)))
    assert report.content.get_volumetric_roi_measurement_groups() == []
    (summary,) = hd.sr.utils.find_content_items(report, name=codes.DCM.Summary, recursive=True)
    assert summary.TextValue.startswith("No anomaly was found")
