import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.dicom_parametric_map import write_parametric_map
from monailabel_app.io.geometry import RAS_LPS
from tests.dicom_results import ALGORITHM, MODEL_HASH, errors_of, run_dcmqi, small_finding, small_series

PLANES = ["axial", "sagittal", "coronal"]


def written(tmp_path, plane="axial", **changes):
    """A parametric map of a small finding: the object as read back, its path, finding and series."""
    series = small_series(tmp_path / "series", plane)
    finding = small_finding(series, **changes)
    path = tmp_path / "map.dcm"
    uid = write_parametric_map(path, finding.anomaly_map, finding.affine, tmp_path / "series", ALGORITHM, MODEL_HASH)
    stored = pydicom.dcmread(path)
    assert stored.SeriesInstanceUID == uid
    return stored, path, finding, series


@pytest.mark.parametrize("plane", PLANES)
def test_every_value_is_where_it_was_computed(tmp_path, plane):
    stored, _, finding, series = written(tmp_path, plane)
    shared = stored.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    frames = stored.pixel_array
    assert frames.dtype == np.float32
    assert len(frames) == series.volume.shape[2]
    to_voxel = np.linalg.inv(RAS_LPS @ finding.affine)
    seen = np.zeros(finding.anomaly_map.shape, bool)
    for frame, groups in zip(frames, stored.PerFrameFunctionalGroupsSequence, strict=True):
        transform = hd.spatial.PixelToReferenceTransformer(
            image_position=groups.PlanePositionSequence[0].ImagePositionPatient,
            image_orientation=shared.PlaneOrientationSequence[0].ImageOrientationPatient,
            pixel_spacing=measures.PixelSpacing,
        )
        row, column = np.indices(frame.shape)
        points = transform(np.stack([column.ravel(), row.ravel()], axis=1))
        voxel = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        index = tuple(np.rint(voxel).astype(int).T)
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
        np.testing.assert_array_equal(frame.ravel(), finding.anomaly_map[index])
        seen[index] = True
    assert seen.all()


def test_a_pixel_is_worth_its_value_in_healthy_standard_deviations(tmp_path):
    stored, _, finding, _ = written(tmp_path)
    mapping = stored.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("{SD}", "UCUM")
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("113071", "DCM")
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == finding.anomaly_map.max()


def test_the_display_window_does_not_depend_on_the_scan(tmp_path):
    windows = set()
    for number, factor in enumerate((0.1, 10.0)):
        folder = tmp_path / str(number)
        series = small_series(folder / "series")
        finding = small_finding(series)
        path = folder / "map.dcm"
        write_parametric_map(path, finding.anomaly_map * factor, finding.affine, folder / "series", ALGORITHM)
        voi = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
        windows.add((float(voi.WindowCenter), float(voi.WindowWidth)))
    assert windows == {(5.0, 10.0)}


def test_it_says_what_it_was_made_of_and_by_what(tmp_path):
    stored, _, _, series = written(tmp_path)
    sources = [pydicom.dcmread(path) for path in series.files]
    assert stored.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    assert stored.StudyInstanceUID == series.study_uid
    assert stored.SeriesInstanceUID != series.series_uid
    assert stored.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert stored.PatientID == sources[0].PatientID
    assert stored.ContentLabel == "ANOMALY_MAP"
    assert stored.ContentQualification == "RESEARCH"
    assert "research use only" in stored.SeriesDescription
    assert stored.ManufacturerModelName == ALGORITHM.name
    assert list(stored.SoftwareVersions) == [ALGORITHM.version, MODEL_HASH[:32]]
    place = {str(source.SOPInstanceUID): source.ImagePositionPatient for source in sources}
    for groups in stored.PerFrameFunctionalGroupsSequence:
        derived = groups.DerivationImageSequence[0]
        assert MODEL_HASH in derived.DerivationDescription
        source = derived.SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(
            groups.PlanePositionSequence[0].ImagePositionPatient, place.pop(source), rtol=0, atol=1e-6
        )
    assert not place


def test_a_validator_finds_no_error(tmp_path):
    _, path, _, _ = written(tmp_path, "sagittal")
    assert errors_of(path) == []


def test_another_reader_gets_the_same_map(tmp_path):
    _, path, finding, _ = written(tmp_path, "coronal")
    (tmp_path / "out").mkdir()
    run_dcmqi("paramap2itkimage", "--inputDICOM", path, "--outputDirectory", tmp_path / "out", "--outputType", "nii")
    (found,) = (tmp_path / "out").glob("*.nii*")
    image = sitk.ReadImage(str(found))
    lps = RAS_LPS @ finding.affine
    for index in [(3, 4, 3), (8, 1, 6), (0, 0, 0), (11, 9, 2)]:
        index = tuple(min(i, n - 1) for i, n in zip(index, finding.anomaly_map.shape, strict=True))
        at = image.TransformPhysicalPointToIndex((lps @ [*index, 1.0])[:3].tolist())
        assert image[at] == finding.anomaly_map[index]


def test_nothing_but_zeros_is_a_valid_map(tmp_path):
    stored, path, _, series = written(tmp_path, anomaly_map=np.zeros((12, 14, 10), np.float32))
    assert not stored.pixel_array.any()
    assert stored.NumberOfFrames == series.volume.shape[2]
    assert errors_of(path) == []


def test_a_map_elsewhere_or_without_numbers_is_refused(tmp_path):
    series = small_series(tmp_path / "series")
    finding = small_finding(series)
    moved = finding.affine.copy()
    moved[:3, 3] += 500
    with pytest.raises(InvalidVolume, match="elsewhere"):
        write_parametric_map(tmp_path / "map.dcm", finding.anomaly_map, moved, tmp_path / "series", ALGORITHM)
    finding.anomaly_map[1, 1, 1] = np.nan
    with pytest.raises(InvalidVolume, match="finite"):
        write_parametric_map(tmp_path / "map.dcm", finding.anomaly_map, finding.affine, tmp_path / "series", ALGORITHM)
    with pytest.raises(UnreadableVolume, match="DICOM"):
        write_parametric_map(tmp_path / "map.dcm", np.ones((2, 2, 2)), np.eye(4), tmp_path / "none", ALGORITHM)
    assert not (tmp_path / "map.dcm").exists()
