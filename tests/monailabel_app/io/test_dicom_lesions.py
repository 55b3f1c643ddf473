from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.dicom_lesions import number_lesions
from tests.dicom_results import LARGE, SMALL, empty_finding, small_finding, small_series


@pytest.fixture
def series(tmp_path):
    return small_series(tmp_path / "series")


def test_each_lesion_carries_its_number(series):
    finding = small_finding(series)
    numbered, names = number_lesions(finding)
    assert names == {1: "anomaly 1", 2: "anomaly 2"}
    assert (numbered[LARGE] == 1).all()
    assert (numbered[SMALL] == 2).all()
    np.testing.assert_array_equal(numbered > 0, finding.mask > 0)


def test_the_numbers_are_the_findings_own(series):
    finding = small_finding(series)
    first, second = finding.lesions
    swapped = replace(finding, lesions=(replace(first, index=7), replace(second, index=3)))
    numbered, names = number_lesions(swapped)
    assert (numbered[LARGE] == 7).all()
    assert (numbered[SMALL] == 3).all()
    assert set(names) == {3, 7}


def test_nothing_found_is_nothing_numbered(series):
    numbered, names = number_lesions(empty_finding(series))
    assert numbered.shape == series.volume.shape
    assert not numbered.any()
    assert names == {}


def test_a_mask_of_another_run_is_refused(series):
    finding = small_finding(series)
    other = finding.mask.copy()
    other[SMALL] = 0
    for changed in (replace(finding, mask=other), replace(finding, lesions=finding.lesions[:1])):
        with pytest.raises(InvalidVolume, match="same run"):
            number_lesions(changed)
    grown = finding.mask.copy()
    grown[9, 2, 6] = 1
    with pytest.raises(InvalidVolume, match="same run"):
        number_lesions(replace(finding, mask=grown))


def test_lesions_that_touch_at_a_corner_are_one(series):
    finding = small_finding(series)
    mask = np.zeros_like(finding.mask)
    mask[1, 1, 1] = mask[2, 2, 2] = 1
    voxel_ml = series.volume.voxel_volume_mm3 / 1000
    lesion = replace(finding.lesions[0], volume_ml=2 * voxel_ml, centroid_voxel=(1.5, 1.5, 1.5))
    numbered, _ = number_lesions(replace(finding, mask=mask, lesions=(lesion,)))
    assert numbered.sum() == 2
