"""Conformal bounds hold as often as they promise for scans that had no part in them, and not much more often."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.calibration.calibrated_map import calibrated_map
from monailabel_app.calibration.conformal import (
    attainable_level,
    bounds_of,
    false_volumes,
    record_of,
    upper_bound,
    warning_of,
)
from monailabel_app.calibration.false_volume import false_volume_curve, false_volume_ml
from monailabel_app.calibration.operating_points import POINTS, choose_operating_points
from monailabel_app.calibration.voxel_statistics import HealthyMoments
from monailabel_app.errors import InvalidSettings

SHAPE = (16, 18, 16)
BRAIN = np.ones(SHAPE, bool)


def raw_maps(count, seed):
    """Healthy maps: a person's own level of correlated noise, from person to person twice as much."""
    generator = np.random.default_rng(seed)
    noise = (ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.2) for _ in range(count))
    return [(12 * n * generator.uniform(0.7, 1.4)).astype(np.float32) for n in noise]


def calibrated(raw, statistics):
    return calibrated_map(raw, BRAIN, statistics, score="l1", smoothing="none", erosion_mm=0.0)


def test_the_bound_is_the_order_statistic_of_the_level():
    values = np.random.default_rng(0).permutation(20).astype(float)
    assert upper_bound(values).value == 19.0  # the 20th of 20
    assert upper_bound(values).level == pytest.approx(20 / 21)
    assert upper_bound(np.arange(39.0)).value == 37.0  # the 38th of 39
    assert upper_bound(np.arange(19.0)).level == pytest.approx(0.95)
    assert upper_bound([1.0, 3.0, 2.0], level=0.5).value == 2.0
    with pytest.raises(InvalidSettings, match="at least one healthy scan"):
        upper_bound([])


@pytest.mark.parametrize(("count", "level"), [(5, 5 / 6), (18, 18 / 19), (19, 0.95), (20, 20 / 21), (100, 96 / 101)])
def test_the_attainable_level_is_said(count, level):
    assert attainable_level(count) == pytest.approx(level)
    assert bool(warning_of(count)) == (count < 19)
    assert record_of(count, 30)["attained"] == pytest.approx(level, abs=1e-4)


def test_too_few_patients_are_told_with_the_level_that_they_support():
    assert "holds for 83 % of healthy scans, not 95 %" in warning_of(5)


@pytest.mark.parametrize("count", [9, 20, 39])
def test_exchangeable_values_stay_below_as_often_as_promised(count):
    """Of any distribution; here a heavy-tailed one."""
    generator = np.random.default_rng(count)
    draws = generator.pareto(1.5, size=(4000, count + 1))
    held = np.mean([row[-1] <= upper_bound(row[:-1]).value for row in draws])
    promised = attainable_level(count)
    assert promised - 0.011 <= held <= promised + 0.011  # three standard errors


def test_the_bounded_threshold_holds_for_further_scans_and_is_not_far_too_high():
    """With fixed statistics the least thresholds of healthy scans are exchangeable: 0.952 of new scans stay below."""
    generator = np.random.default_rng(7)
    maps = [np.abs(raw) for raw in raw_maps(400, seed=1)]
    curves = [false_volume_curve(m, limit_ml=2.0) for m in maps]
    least = np.array([curve.least_threshold(0.5) for curve in curves])
    held = []
    for _ in range(3000):
        picked = generator.permutation(len(maps))[:21]
        threshold = upper_bound(least[picked[:20]]).value
        held.append(curves[picked[20]].at(max(threshold, curves[picked[20]].values[-1])) <= 0.5)
    assert 0.94 <= np.mean(held) <= 0.97


def test_with_statistics_of_the_other_scans_it_holds_as_well():
    """The whole way of a calibration: its own scans standardised without themselves, new ones with all statistics."""
    held = {name: [] for name in POINTS}
    for repetition in range(25):
        raws = raw_maps(40, seed=100 + repetition)
        moments = HealthyMoments(raws[:20], [BRAIN] * 20)
        maps = [calibrated(raw, moments.statistics(index)) for index, raw in enumerate(raws[:20])]
        values = [m.ravel() for m in maps]
        names = [str(i) for i in range(20)]
        found = false_volumes(choose_operating_points(values), maps, values, names)
        statistics = moments.statistics()
        for raw in raws[20:]:
            new = calibrated(raw, statistics)
            for name, point in found.points.items():
                held[name].append(false_volume_ml(new, point.threshold) <= point.bound_ml + 1e-9)
    for name, values in held.items():
        # 500 new scans in 25 sets: the standard error over sets is about 0.012.
        assert 0.92 <= np.mean(values) <= 0.99, name


def test_points_tables_and_volumes_of_a_calibration_fit_together():
    maps = [np.abs(raw) for raw in raw_maps(20, seed=3)]
    values = [m.ravel() for m in maps]
    names = [str(i) for i in range(20)]
    found = false_volumes(choose_operating_points(values), maps, values, names)
    assert tuple(found.points) == POINTS
    assert list(found.table) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    assert list(found.table.values()) == sorted(found.table.values(), reverse=True)
    bounded = found.points["bounded"]
    assert (bounded.target_ml, bounded.bound_ml, bounded.target_fpr) == (2.0, 2.0, None)
    assert bounded.threshold == found.table[2.0]
    assert max(bounded.false_ml) <= 2.0
    for point in found.points.values():
        assert point.false_ml == tuple(round(false_volume_ml(m, point.threshold), 4) for m in maps)
        assert point.bound_level == pytest.approx(20 / 21, abs=1e-4)
        assert point.measured_fpr == pytest.approx(np.mean([(v > point.threshold).mean() for v in values]))


def test_a_patient_with_many_scans_counts_once():
    maps = [np.abs(raw) for raw in raw_maps(6, seed=4)]
    maps[0] = 3 * maps[0]
    once = false_volumes({}, maps, [m.ravel() for m in maps], list("abcdef"))
    again = [*maps[:1] * 4, *maps[1:]]
    thrice = false_volumes({}, again, [m.ravel() for m in again], list("aaaabcdef"))
    assert once.table == thrice.table
    assert once.points["bounded"].bound_level == thrice.points["bounded"].bound_level == pytest.approx(6 / 7, abs=1e-4)


def test_slices_have_a_tenth_of_the_bounds():
    assert bounds_of(50) == (2.0, (0.5, 1.0, 2.0, 5.0, 10.0, 20.0))
    assert bounds_of(1) == (0.2, (0.05, 0.1, 0.2, 0.5, 1.0, 2.0))
    maps = [np.abs(raw[..., :1]) for raw in raw_maps(20, seed=3)]
    found = false_volumes({}, maps, [m.ravel() for m in maps], [str(i) for i in range(20)])
    assert found.points["bounded"].target_ml == 0.2
    assert max(found.points["bounded"].false_ml) <= 0.2
    assert record_of(20, 1)["of"] == "a slice of 2 mm"
