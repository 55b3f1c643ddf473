"""Lesions: connectivity, size limit, measurements, regions, and empty or full masks."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.postprocessing.components import find_lesions

SHAPE = (10, 11, 12)
# Axes permuted and one flipped; 6 mm3 a voxel.
AFFINE = np.array([[0, 0, 3.0, -10], [-2.0, 0, 0, 20], [0, 1.0, 0, 5], [0, 0, 0, 1]])


@pytest.fixture
def anomaly_map() -> np.ndarray:
    values = np.zeros(SHAPE, np.float32)
    values[1, 1, 1], values[2, 2, 2] = 4, 6  # touch at a corner only
    values[6:8, 6:8, 6:9] = 3  # 12 voxels
    values[9, 0, 11] = 9
    return values


EVERYWHERE = np.ones(SHAPE, bool)


def test_lesions_come_largest_first_and_corners_connect(anomaly_map):
    mask, lesions = find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=2)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, anomaly_map > 2)
    assert [lesion.index for lesion in lesions] == [1, 2, 3]
    np.testing.assert_allclose([lesion.volume_ml for lesion in lesions], [0.072, 0.012, 0.006])


def test_centroid_and_scores_are_measured_on_the_native_grid(anomaly_map):
    _, lesions = find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=2)
    pair = lesions[1]
    assert pair.centroid_voxel == (1.5, 1.5, 1.5)
    assert pair.centroid_ras_mm == pytest.approx((4.5 - 10, -3 + 20, 1.5 + 5))
    assert (pair.mean_score, pair.peak_score) == (5, 6)


def test_measurements_equal_scipy_on_a_random_map():
    noise = np.random.default_rng(0).standard_normal((20, 20, 20))
    values = ndimage.gaussian_filter(noise, 1).astype(np.float32)
    mask, lesions = find_lesions(values, np.ones(values.shape, bool), np.eye(4), threshold=0.2)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(lesions) == count > 5
    index = range(1, count + 1)
    expected = sorted(
        zip(
            ndimage.sum(mask, labels, index) / 1000,
            ndimage.mean(values, labels, index),
            ndimage.maximum(values, labels, index),
            ndimage.center_of_mass(mask, labels, index),
            strict=True,
        )
    )
    measured = sorted((v.volume_ml, v.mean_score, v.peak_score, v.centroid_voxel) for v in lesions)
    for (va, ma, pa, ca), (vb, mb, pb, cb) in zip(expected, measured, strict=True):
        assert (va, ma, pa) == pytest.approx((vb, mb, pb), rel=1e-5)
        assert ca == pytest.approx(cb)


def test_small_components_are_dropped_from_mask_and_list(anomaly_map):
    mask, lesions = find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=2, min_volume_mm3=12)
    assert len(lesions) == 2
    assert mask.sum() == 14
    mask, lesions = find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=2, min_volume_mm3=1e6)
    assert not mask.any()
    assert lesions == ()


def test_only_values_strictly_above_the_threshold_and_inside_the_brain_count(anomaly_map):
    brain = EVERYWHERE.copy()
    brain[9] = False
    mask, lesions = find_lesions(anomaly_map, brain, AFFINE, threshold=3)
    assert mask.sum() == 2
    assert len(lesions) == 1


def test_nothing_above_the_threshold_is_an_empty_answer(anomaly_map):
    for brain, threshold in ((EVERYWHERE, 100), (np.zeros(SHAPE, bool), 1), (EVERYWHERE, np.inf)):
        mask, lesions = find_lesions(anomaly_map, brain, AFFINE, threshold=threshold)
        assert not mask.any()
        assert lesions == ()


def test_a_brain_that_is_all_lesion_is_one_component():
    mask, lesions = find_lesions(np.ones(SHAPE, np.float32), EVERYWHERE, np.eye(4), threshold=0)
    assert mask.all()
    assert len(lesions) == 1
    assert lesions[0].centroid_voxel == (4.5, 5, 5.5)


def test_the_region_is_the_named_label_with_most_voxels(anomaly_map):
    regions = np.zeros(SHAPE, np.int32)
    regions[6:8, 6:8, 6:8], regions[6:8, 6:8, 8] = 7, 9
    regions[1:3, 1:3, 1:3] = 50  # a label without a name
    names = {7: "Thalamus", 9: "Putamen"}
    _, lesions = find_lesions(
        anomaly_map, EVERYWHERE, AFFINE, threshold=2, regions=regions, region_names=names
    )
    assert [lesion.region for lesion in lesions] == ["Thalamus", "", ""]


def test_nan_and_unequal_shapes_are_refused(anomaly_map):
    with pytest.raises(InvalidSettings, match="threshold"):
        find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=np.nan)
    with pytest.raises(InvalidVolume, match="brain mask"):
        find_lesions(anomaly_map, EVERYWHERE[1:], AFFINE, threshold=1)
    with pytest.raises(InvalidVolume, match="regions"):
        find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=1, regions=EVERYWHERE[1:])
    anomaly_map[0, 0, 0] = np.nan
    with pytest.raises(InvalidVolume, match="NaN"):
        find_lesions(anomaly_map, EVERYWHERE, AFFINE, threshold=1)
