import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io import dicom_codes
from monailabel_app.io.dicom_lesions import number_lesions
from monailabel_app.io.dicom_seg import write_dicom_seg
from monailabel_app.io.dicom_sr import write_dicom_sr
from monailabel_app.types import GateReport
from tests.dicom_results import (
    ALGORITHM,
    MODEL_HASH,
    empty_finding,
    errors_of,
    run_dcmqi,
    small_finding,
    small_series,
)

RAS_TO_LPS = np.array([-1, -1, 1])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "series"


def report_of(finding, folder, segmentation=None):
    """The report of a finding, written and read back."""
    path = folder.parent / "report.dcm"
    uid = write_dicom_sr(path, finding, folder, ALGORITHM, segmentation)
    document = hd.sr.srread(str(path))
    assert document.SeriesInstanceUID == uid
    return document


def segmentation_of(finding, folder, one_each=True):
    """The segmentation of a finding's lesions, a segment each or all in one."""
    path = folder.parent / "seg.dcm"
    label, names = number_lesions(finding) if one_each else (finding.mask, None)
    write_dicom_seg(path, label, finding.affine, folder, ALGORITHM, names)
    return path


def value_of(group, name, derivation=None) -> tuple[float, str]:
    """Number and unit of a group's one measurement of that name."""
    (found,) = [m for m in group.get_measurements(name) if derivation is None or m.derivation == derivation]
    return float(found.value), found.unit.value


def referenced_segment(group, segmentation) -> int:
    """Number of the segment a group refers to, which is one of that segmentation."""
    (item,) = [item for item in group.referenced_segment if item.value_type == hd.sr.ValueTypeValues.IMAGE]
    assert item.referenced_sop_instance_uid == segmentation.SOPInstanceUID
    return int(item.ReferencedSOPSequence[0].ReferencedSegmentNumber)


def texts(document, name) -> list[str]:
    """All texts of that name, in the whole tree."""
    found = hd.sr.utils.find_content_items(document, name=name, value_type=hd.sr.ValueTypeValues.TEXT, recursive=True)
    return [str(item.TextValue) for item in found]


@pytest.mark.parametrize("with_segments", [True, False])
def test_every_lesion_is_told_as_it_was_measured(folder, with_segments):
    finding = small_finding(small_series(folder))
    document = report_of(finding, folder, segmentation_of(finding, folder) if with_segments else None)
    groups = document.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["anomaly 1", "anomaly 2"]
    for lesion, group in zip(finding.lesions, groups, strict=True):
        assert value_of(group, codes.SCT.Volume) == (pytest.approx(lesion.volume_ml), "ml")
        peak = value_of(group, codes.DCM.ZScore, codes.SCT.Maximum)
        assert peak == (pytest.approx(lesion.peak_score), "{SD}")
        mean = value_of(group, codes.DCM.ZScore, codes.SCT.Mean)
        assert mean == (pytest.approx(lesion.mean_score), "{SD}")
        assert group.finding_category.value == "49755003"
        assert group.finding_type.value == "52988006"
    sites = [group.finding_sites[0] for group in groups]
    assert [(site.value.value, site.laterality.value) for site in sites] == [
        ("83251001", "24028007"),
        ("11000004", "7771000"),
    ]
    assert texts(document, dicom_codes.REGION) == ["right middle frontal gyrus", "left caudate"]


def test_the_scan_is_told_by_score_p_value_and_totals(folder):
    finding = small_finding(small_series(folder))
    document = report_of(finding, folder)
    (scan,) = document.content.get_image_measurement_groups()
    assert value_of(scan, dicom_codes.SCAN_SCORE) == (pytest.approx(finding.anomaly_score), "{SD}")
    assert value_of(scan, dicom_codes.P_VALUE) == (pytest.approx(finding.p_value), "1")
    assert value_of(scan, dicom_codes.NUMBER_OF_LESIONS) == (2, "1")
    total = sum(lesion.volume_ml for lesion in finding.lesions)
    assert value_of(scan, codes.SCT.Volume, codes.SCT.Total) == (pytest.approx(total), "ml")
    assert len(scan.source_images) == finding.mask.shape[2]


def test_each_lesion_refers_to_its_own_segment_and_shares_its_identity(folder):
    finding = small_finding(small_series(folder))
    path = segmentation_of(finding, folder)
    segmentation = hd.seg.segread(str(path))
    groups = report_of(finding, folder, path).content.get_volumetric_roi_measurement_groups()
    sources = [
        item.ReferencedSOPInstanceUID for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ]
    assert segmentation.number_of_segments == 2
    for lesion, group in zip(finding.lesions, groups, strict=True):
        number = referenced_segment(group, segmentation)
        assert number == lesion.index
        segment = segmentation.get_segment_description(number)
        assert segment.SegmentLabel == segment.tracking_id == group.tracking_identifier
        assert segment.tracking_uid == group.tracking_uid
        pixels = segmentation.get_pixels_by_source_instance(
            sources, segment_numbers=[number], assert_missing_frames_are_empty=True
        )
        assert np.count_nonzero(pixels) * 9.0 / 1000 == pytest.approx(lesion.volume_ml)


def test_lesions_of_one_common_segment_refer_to_it_and_keep_their_own_identity(folder):
    finding = small_finding(small_series(folder))
    path = segmentation_of(finding, folder, one_each=False)
    segmentation = hd.seg.segread(str(path))
    groups = report_of(finding, folder, path).content.get_volumetric_roi_measurement_groups()
    assert [referenced_segment(group, segmentation) for group in groups] == [1, 1]
    assert len({group.tracking_uid for group in groups}) == 2


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_without_a_segmentation_a_lesion_is_a_point_in_the_frame_of_reference(folder, plane):
    series = small_series(folder, plane)
    finding = small_finding(series)
    source = pydicom.dcmread(series.files[0])
    groups = report_of(finding, folder).content.get_volumetric_roi_measurement_groups()
    for lesion, group in zip(finding.lesions, groups, strict=True):
        point = group.roi
        assert point.frame_of_reference_uid == source.FrameOfReferenceUID
        np.testing.assert_allclose(
            point.graphic_data[0].ravel(), np.multiply(lesion.centroid_ras_mm, RAS_TO_LPS), atol=1e-3
        )


@pytest.mark.parametrize("with_segments", [True, False])
def test_nothing_found_is_said_in_so_many_words(folder, with_segments):
    finding = empty_finding(small_series(folder))
    document = report_of(finding, folder, segmentation_of(finding, folder) if with_segments else None)
    assert document.content.get_volumetric_roi_measurement_groups() == []
    (scan,) = document.content.get_image_measurement_groups()
    assert value_of(scan, dicom_codes.NUMBER_OF_LESIONS)[0] == 0
    (summary,) = texts(document, codes.DCM.Summary)
    assert summary.startswith("No anomaly was found at the operating point 'balanced'")
    assert errors_of(folder.parent / "report.dcm") == []


def test_it_says_what_made_it_and_that_nobody_has_checked_it(folder):
    finding = small_finding(small_series(folder))
    document = report_of(finding, folder)
    assert (document.CompletionFlag, document.PreliminaryFlag) == ("COMPLETE", "PRELIMINARY")
    assert document.VerificationFlag == "UNVERIFIED"
    assert list(document.SoftwareVersions) == [ALGORITHM.version, MODEL_HASH[:32]]
    assert set(texts(document, codes.DCM.AlgorithmName)) == {ALGORITHM.name}
    assert set(texts(document, codes.DCM.AlgorithmVersion)) == {ALGORITHM.version}
    parameters = set(texts(document, codes.DCM.AlgorithmParameters))
    assert {f"model_sha256 = {MODEL_HASH}", "threshold = 3", "operating_point = balanced"} <= parameters
    (use,) = texts(document, dicom_codes.INTENDED_USE)
    assert "research use only" in use.lower()
    assert document.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == dicom_codes.LOCAL_SCHEME


def test_the_same_model_is_the_same_observer_in_every_report(folder):
    series = small_series(folder)
    observers = set()
    for finding in (small_finding(series), empty_finding(series), empty_finding(series, model_hash="ff" * 32)):
        (context,) = report_of(finding, folder).content.get_observer_contexts()
        observers.add(context.observer_identifying_attributes.uid)
    assert len(observers) == 2


def test_warnings_and_the_input_gate_are_in_it_once(folder):
    gate = GateReport(9.0, 0.01, 4.0, False, ("the head is cut off",))
    warnings = (gate.sentence(), "the scan is blurred")
    finding = empty_finding(small_series(folder), gate=gate, warnings=warnings)
    assert texts(report_of(finding, folder), dicom_codes.WARNING) == list(warnings)
    finding = empty_finding(small_series(folder), gate=gate, warnings=())
    assert texts(report_of(finding, folder), dicom_codes.WARNING) == [gate.sentence()]


def test_a_number_that_is_none_is_left_out(folder):
    finding = small_finding(small_series(folder), p_value=float("nan"))
    (scan,) = report_of(finding, folder).content.get_image_measurement_groups()
    assert scan.get_measurements(dicom_codes.P_VALUE) == []


def test_a_segmentation_of_something_else_is_refused(folder, tmp_path):
    finding = small_finding(small_series(folder))
    other_folder = tmp_path / "other" / "series"
    other = small_finding(small_series(other_folder, seed=5))
    with pytest.raises(InvalidVolume, match="another series"):
        report_of(finding, folder, segmentation_of(other, other_folder))
    for one_each in (True, False):
        with pytest.raises(InvalidVolume, match="same finding"):
            report_of(empty_finding(small_series(folder)), folder, segmentation_of(finding, folder, one_each))
    with pytest.raises(UnreadableVolume, match="Segmentation"):
        report_of(finding, folder, next(folder.iterdir()))
    with pytest.raises(UnreadableVolume, match="Segmentation"):
        report_of(finding, folder, tmp_path / "none.dcm")


def test_of_the_patient_only_the_standards_patient_and_study_modules_are_copied(folder):
    series = small_series(folder)
    for path in series.files:
        dataset = pydicom.dcmread(path)
        for name in ("PatientName", "PatientComments", "PatientAddress", "OperatorsName", "InstitutionName"):
            setattr(dataset, name, "SECRET")
        dataset.ProtocolName = dataset.DeviceSerialNumber = dataset.ImageComments = "SECRET"
        dataset.save_as(path)
    document = report_of(small_finding(series), folder)
    told = {element.keyword for element in document.iterall() if "SECRET" in str(element.value)}
    assert told == {"PatientName", "PatientComments"}


@pytest.mark.parametrize("one_each", [True, False, None])
def test_a_validator_finds_no_error(folder, one_each):
    finding = small_finding(small_series(folder, "sagittal"))
    segmentation = None if one_each is None else segmentation_of(finding, folder, one_each)
    report_of(finding, folder, segmentation)
    assert errors_of(folder.parent / "report.dcm") == []
    if segmentation:
        assert errors_of(segmentation) == []


def test_another_reader_gets_the_same_measurements(folder, tmp_path):
    finding = small_finding(small_series(folder))
    report_of(finding, folder, segmentation_of(finding, folder))
    told = tmp_path / "told.json"
    run_dcmqi("tid1500reader", "--inputDICOM", tmp_path / "report.dcm", "--outputMetadata", told)
    text = told.read_text()
    for lesion in finding.lesions:
        assert f'"{lesion.peak_score}' in text
    assert '"ReferencedSegment" : 2' in text
