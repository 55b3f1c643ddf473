"""The DICOM objects of a finding on another scanner's series: 384 slices of 0.67 mm, some of its headers invalid."""

import zipfile
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from monailabel_app.io.dicom import dicom_geometry
from monailabel_app.io.dicom_lesions import number_lesions
from monailabel_app.io.dicom_parametric_map import write_parametric_map
from monailabel_app.io.dicom_seg import write_dicom_seg
from monailabel_app.io.dicom_sr import write_dicom_sr
from monailabel_app.types import Volume
from tests.dicom_results import ALGORITHM, MODEL_HASH, errors_of, small_finding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """The folder of the series' slices."""
    root = tmp_path_factory.mktemp("stranger")
    with zipfile.ZipFile(shared_data / "dicom" / "studyforrest_t1.zip") as archive:
        archive.extractall(root)
    return next(path for path in sorted(root.rglob("*")) if path.is_file()).parent


@pytest.fixture(scope="module")
def finding(folder):
    """Two lesions on that grid, and a map of 162 MB."""
    geometry = dicom_geometry(folder)
    series = SimpleNamespace(volume=Volume(np.zeros((1, *geometry.shape), np.float32), geometry.affine))
    return small_finding(series)


def test_the_map_is_valid_and_exact(folder, finding, tmp_path):
    path = tmp_path / "map.dcm"
    write_parametric_map(path, finding.anomaly_map, finding.affine, folder, ALGORITHM, MODEL_HASH)
    assert errors_of(path) == []
    stored = pydicom.dcmread(path)
    assert stored.NumberOfFrames == 384
    values = np.sort(stored.pixel_array.ravel())
    np.testing.assert_array_equal(values, np.sort(finding.anomaly_map.ravel()))


def test_segments_and_report_are_valid_and_agree(folder, finding, tmp_path):
    label, names = number_lesions(finding)
    seg, sr = tmp_path / "seg.dcm", tmp_path / "report.dcm"
    write_dicom_seg(seg, label, finding.affine, folder, ALGORITHM, names)
    write_dicom_sr(sr, finding, folder, ALGORITHM, seg)
    assert errors_of(seg) == errors_of(sr) == []
    groups = hd.sr.srread(str(sr)).content.get_volumetric_roi_measurement_groups()
    told = [float(group.get_measurements(codes.SCT.Volume)[0].value) for group in groups]
    assert told == pytest.approx([lesion.volume_ml for lesion in finding.lesions])
