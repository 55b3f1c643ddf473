"""The marked volume at every threshold is that of the mask which the product would make there."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.calibration.false_volume import false_volume_curve, false_volume_ml, of_patients, volume_at
from monailabel_app.postprocessing.components import find_lesions

VOXEL = np.diag([2.0, 2.0, 2.0, 1.0])


def noise_map(seed, shape=(24, 26, 22), sigma=1.0):
    made = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return np.maximum(made / made.std(), 0).astype(np.float32)


def product_ml(anomaly_map, threshold):
    inside = np.ones(anomaly_map.shape, bool)
    mask, _ = find_lesions(anomaly_map, inside, VOXEL, threshold=threshold, min_volume_mm3=100.0)
    return int(mask.sum()) * 8 / 1000


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.5])
def test_the_curve_gives_the_volume_of_the_product_s_mask(sigma):
    made = noise_map(3, sigma=sigma)
    curve = false_volume_curve(made, limit_ml=5.0)
    lowest = float(curve.values[-1])
    for threshold in np.linspace(lowest, made.max(), 25):
        assert curve.at(threshold) == pytest.approx(product_ml(made, threshold), abs=1e-9)
        assert false_volume_ml(made, threshold) == pytest.approx(product_ml(made, threshold), abs=1e-9)
    assert curve.at(lowest / 2) is None
    assert volume_at(curve, made, lowest / 2) == pytest.approx(product_ml(made, lowest / 2), abs=1e-9)


@pytest.mark.parametrize("limit", [0.0, 0.5, 2.0, 5.0])
def test_the_least_threshold_keeps_the_volume_and_any_lower_one_does_not(limit):
    for seed in range(6):
        made = noise_map(seed)
        found = false_volume_curve(made, limit_ml=5.0).least_threshold(limit)
        assert product_ml(made, found) <= limit < product_ml(made, np.nextafter(np.float32(found), np.float32(0)))


def test_equal_values_come_above_the_threshold_together():
    made = np.zeros((12, 12, 12), np.float32)
    made[2:6, 2:6, 2:6] = 3.0
    made[8:11, 8:11, 8:11] = 2.0
    curve = false_volume_curve(made, limit_ml=10.0)
    assert curve.complete
    assert (curve.at(3.0), curve.at(2.5), curve.at(2.0), curve.at(0.0)) == (0.0, 0.512, 0.512, pytest.approx(0.728))
    assert curve.least_threshold(0.3) == 3.0
    assert curve.least_threshold(0.6) == 2.0
    assert curve.least_threshold(1.0) == 0.0


def test_a_map_longer_than_one_chunk_is_followed_to_its_end():
    made = noise_map(5, (40, 40, 40), sigma=0.0)
    curve = false_volume_curve(made, limit_ml=1000.0)
    assert curve.complete
    assert len(curve.values) == int((made > 0).sum()) > 16384
    assert curve.at(0.0) == pytest.approx(product_ml(made, 0.0))
    assert (np.diff(curve.marked_ml) >= 0).all()


def test_components_under_the_smallest_volume_do_not_count():
    made = np.zeros((8, 8, 8), np.float32)
    made[1:3, 1:3, 1:4] = 1.0
    assert false_volume_ml(made, 0.5) == 0.0
    assert false_volume_ml(made, 0.5, smallest_ml=0.0) == pytest.approx(0.096)
    assert false_volume_curve(made, limit_ml=1.0).at(0.5) == 0.0
    assert false_volume_curve(np.zeros((4, 4, 4)), limit_ml=1.0).least_threshold(0.5) == 0.0


def test_a_patient_counts_with_the_worst_scan():
    assert of_patients([1.0, 5.0, 2.0], ["a", "a", "b"]).tolist() == [5.0, 2.0]
