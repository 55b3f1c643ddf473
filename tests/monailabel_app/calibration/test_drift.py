"""Drift: another scanner shows, a lesion does not, and a healthy scan like the others hardly ever."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.calibration.drift import (
    DriftReference,
    ScanDrift,
    bulk_distance,
    drift_reference,
    rank_drift,
    scan_drift,
    score_drift,
)
from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.imagewise import rank_p_value

VOXELS = 20_000  # of 8 mm3: 160 ml


def healthy(seed, scale=1.0, voxels=VOXELS):
    """Calibrated voxels of one scan; people differ in scale by about 5 %."""
    generator = np.random.default_rng(seed)
    return np.abs(generator.normal(0, scale * generator.normal(1, 0.05), voxels)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    return drift_reference([healthy(i) for i in range(20)], [str(i) for i in range(20)])


def test_the_pooled_quantiles_are_those_of_all_voxels(reference):
    pooled = np.concatenate([healthy(i) for i in range(20)])
    exact = np.quantile(pooled, np.linspace(0, 1, 101))
    np.testing.assert_allclose(reference.quantiles[1:91], exact[1:91], atol=0.01)
    assert len(reference.quantiles) == 101
    assert len(reference.distances) == 20


def test_the_distance_is_that_of_kolmogorov_and_smirnov_where_the_bulk_lies(reference):
    values = healthy(50, scale=1.5)
    pooled = np.concatenate([healthy(i) for i in range(20)])
    exact = stats.ks_2samp(values, pooled).statistic  # the largest difference lies below the 90 % quantile here
    assert bulk_distance(values, reference.quantiles) == pytest.approx(exact, abs=0.01)


def test_a_further_healthy_scan_is_ranked_uniformly_and_hardly_ever_warned_of(reference):
    found = [scan_drift([healthy(1000 + i)], reference) for i in range(200)]
    assert sum(scan.drifted for scan in found) <= 4
    assert 0.4 <= np.mean([scan.p_value for scan in found]) <= 0.65
    assert min(scan.p_value for scan in found) >= 1 / 21 - 1e-9
    assert all(scan.drifted == bool(scan.sentence()) for scan in found)


@pytest.mark.parametrize("scale", [0.6, 1.6])
def test_another_scanner_is_warned_of_in_numbers(reference, scale):
    found = scan_drift([healthy(7, scale=scale)], reference)
    assert found.drifted
    assert found.p_value == pytest.approx(1 / 21)
    assert "the 20 healthy scans of the calibration" in found.sentence()
    assert found.to_json()["healthy_scans"] == 20


def test_a_lesion_of_a_large_share_does_not_move_it_by_more_than_its_share(reference):
    """30 ml of a brain of 1200 ml are 2.5 %; with the smoothed surroundings twice as much."""
    for seed in range(30):
        values = healthy(300 + seed)
        before = scan_drift([values], reference)
        lesion = values.copy()
        lesion[: int(0.05 * len(values))] = 8.0
        after = scan_drift([lesion], reference)
        assert after.distance <= before.distance + 0.051
        assert not after.drifted


def test_what_a_network_makes_of_a_lesion_elsewhere_is_no_warning_and_another_scanner_is():
    """Distances measured with cold_diffusion_t1: its calibration scans up to 0.123, of which one stands at 0.12."""
    calibration = {"p_value": 1 / 21, "scans": 20, "median": 0.045, "largest": 0.12267}
    assert not ScanDrift(0.12 + 0.1, **calibration).drifted
    assert ScanDrift(0.527, **calibration).drifted


def test_many_zeros_of_a_one_sided_score_are_no_distance():
    made = [np.maximum(np.random.default_rng(i).normal(size=VOXELS), 0).astype(np.float32) for i in range(8)]
    reference = drift_reference(made, [str(i) for i in range(8)])
    assert reference.quantiles[40] == 0.0
    assert max(reference.distances) < 0.03
    far = np.maximum(np.random.default_rng(9).normal(1.0, 1, VOXELS), 0)
    assert scan_drift([far], reference).distance > 0.3


def test_a_patient_s_scans_are_compared_with_other_patients():
    odd = healthy(1, scale=2.0)
    values = [odd, odd, odd, *(healthy(i) for i in range(2, 8))]
    shared = drift_reference(values, ["a", "a", "a", *"bcdefg"])
    alone = drift_reference(values, list("abcdefghi"))
    assert shared.distances[0] > alone.distances[0] + 0.05
    assert drift_reference([odd], ["a"]).distances == pytest.approx((0.0,), abs=1e-3)


def test_single_levels_have_the_mean_of_their_distances(reference):
    near, far = healthy(5), healthy(6, scale=2.0)
    expected = np.mean([bulk_distance(v, reference.quantiles) for v in (near, far)])
    assert scan_drift([near, np.empty(0), far], reference).distance == pytest.approx(expected)


def test_a_reference_survives_json(reference):
    assert DriftReference.from_json(reference.to_json()) == reference


def test_scores_of_other_scans_are_told_apart_with_their_numbers():
    generator = np.random.default_rng(0)
    known, same, other = generator.normal(size=20), generator.normal(size=12), generator.normal(2, 1, 12)
    found = score_drift(other, known)
    exact = stats.ks_2samp(other, known)
    assert found["p_value"] == pytest.approx(exact.pvalue, rel=0.01)
    assert found["distance"] == pytest.approx(exact.statistic, abs=1e-4)
    assert found["drifted"]
    assert "higher on the whole" in found["sentence"]
    assert "12 scans against 20" in found["sentence"]
    calm = score_drift(same, known)
    assert not calm["drifted"]
    assert "so few scans show large differences only" in calm["sentence"]


def test_healthy_sets_of_one_kind_are_called_different_as_rarely_as_the_level_says():
    generator = np.random.default_rng(1)
    called = [score_drift(generator.normal(size=15), generator.normal(size=20))["drifted"] for _ in range(400)]
    assert np.mean(called) <= 0.07


def test_ranks_alone_give_the_same_test():
    generator = np.random.default_rng(5)
    for shift, count in ((0.0, 7), (1.5, 25), (-1.0, 12)):
        known, given = generator.normal(size=20), generator.normal(shift, size=count)
        whole, ranks = score_drift(given, known), rank_drift([rank_p_value(x, known) for x in given], 20)
        assert {**whole, "median_difference": None} == {**ranks, "median_difference": None}
    assert rank_drift([0.5, 0.123], 20) is None
    assert rank_drift([], 20) is None
    assert rank_drift([float("nan")], 20) is None


def test_no_scores_are_refused():
    with pytest.raises(InvalidSettings, match="got 0 and 3"):
        score_drift([], [1.0, 2.0, 3.0])
