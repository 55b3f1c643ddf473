"""Thresholds by the healthy false-positive rate: they hold for scans that had no part in choosing them."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.calibration.operating_points import TARGET_FPR, OperatingPoint, choose_operating_points


def healthy(scans, voxels=20000, seed=0, spread=0.0):
    generator = np.random.default_rng(seed)
    return [generator.normal(generator.normal(0, spread), 1, voxels).astype(np.float32) for _ in range(scans)]


def test_thresholds_are_ordered_and_those_of_the_normal_distribution():
    points = choose_operating_points(healthy(20))
    thresholds = [points[name].threshold for name in ("sensitive", "balanced", "specific")]
    assert thresholds == sorted(thresholds)
    np.testing.assert_allclose(thresholds, [1.645, 2.326, 3.090], atol=0.05)


def test_the_measured_rate_is_the_target_and_lies_in_its_interval():
    for name, point in choose_operating_points(healthy(20, spread=0.3)).items():
        assert point.target_fpr == TARGET_FPR[name]
        assert point.measured_fpr == pytest.approx(point.target_fpr, abs=1e-4)
        assert point.interval[0] <= point.measured_fpr <= point.interval[1] <= point.worst_fpr
        assert point.healthy_scans == 20


def test_on_new_scans_the_rate_is_the_target_within_the_interval():
    points = choose_operating_points(healthy(30, spread=0.2))
    new = healthy(300, seed=99, spread=0.2)
    for point in points.values():
        rate = np.mean([(values > point.threshold).mean() for values in new])
        assert point.interval[0] <= rate <= point.interval[1]


def test_the_interval_widens_with_the_spread_between_scans():
    widths = []
    for spread in (0.05, 0.5):
        low, high = choose_operating_points(healthy(20, spread=spread))["balanced"].interval
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_the_interval_of_five_scans_is_as_wide_as_five_warrant():
    """The plain percentile interval holds the true rate in 4 of 5 cases only (measured with these numbers)."""
    spread, inside, widths = 0.2, 0, {}
    for repetition in range(80):
        point = choose_operating_points(healthy(5, 4000, seed=repetition, spread=spread))["sensitive"]
        true_rate = stats.norm.sf(point.threshold / np.hypot(1, spread))
        inside += point.interval[0] <= true_rate <= point.interval[1]
    assert inside / 80 >= 0.88
    for scans in (5, 20, 80):
        low, high = choose_operating_points(healthy(scans, spread=0.3))["specific"].interval
        widths[scans] = high - low
    assert widths[5] > 1.5 * widths[20] > 2.5 * widths[80]


def test_scans_of_one_patient_count_as_one():
    one, other = np.full(1000, 5.0), np.zeros(1000)
    shared = choose_operating_points([one, *[other] * 4], patients=["a", "b", "b", "b", "b"])["sensitive"]
    assert (shared.measured_fpr, shared.threshold, shared.healthy_scans) == (0.0, 5.0, 5)
    values = healthy(5, spread=0.4)
    alone = choose_operating_points(values)["balanced"]
    copied = choose_operating_points(values * 3, patients=list("abcde") * 3)["balanced"]
    assert copied.threshold == pytest.approx(alone.threshold, abs=1e-3)
    assert copied.interval == pytest.approx(alone.interval, rel=0.02)
    assert choose_operating_points(values * 3)["balanced"].interval[1] < 0.8 * alone.interval[1]


def test_every_scan_counts_the_same_whatever_its_brain_size():
    small, large = np.full(100, 5.0), np.zeros(100_000)
    points = choose_operating_points([small, large])
    assert points["sensitive"].threshold == 5.0
    assert choose_operating_points([large, large])["sensitive"].threshold == 0.0


def test_the_same_scans_give_the_same_points_in_any_order():
    values = healthy(12, spread=0.3)
    first, second = choose_operating_points(values), choose_operating_points(values[::-1])
    for name, point in first.items():
        assert choose_operating_points(values)[name] == point
        assert second[name].threshold == pytest.approx(point.threshold, abs=1e-6)


def test_a_point_survives_json():
    point = choose_operating_points(healthy(10))["balanced"]
    assert OperatingPoint.from_json(point.to_json()) == point
