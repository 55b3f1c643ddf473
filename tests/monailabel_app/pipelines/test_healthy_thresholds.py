"""Thresholds from healthy scans: every person with the same weight, anybody left out, the rates kept."""

import numpy as np
import pytest

from monailabel_app.calibration.operating_points import OperatingPoint, choose_operating_points
from monailabel_app.calibration.tails import TAIL_SHARES, tail_table
from monailabel_app.pipelines.healthy_thresholds import GRID, HealthyThresholds, summarise

SHAPE = (16, 16, 16)
INSIDE = np.ones(SHAPE, bool)


def _maps(count: int = 6) -> list[np.ndarray]:
    return [
        np.abs(np.random.default_rng(seed).normal(0, 1 + 0.2 * seed, SHAPE)).astype(np.float32) for seed in range(count)
    ]


@pytest.fixture(scope="module")
def thresholds():
    return HealthyThresholds([summarise(made, INSIDE) for made in _maps()])


def test_the_rates_are_those_of_a_calibration(thresholds):
    points = choose_operating_points([made.ravel() for made in _maps()])
    for point in points.values():
        assert thresholds.point(point) == pytest.approx(point.threshold, rel=5e-3)
    table = tail_table([made.ravel() for made in _maps()])
    assert thresholds.tails() == pytest.approx(table, rel=5e-3, abs=float(GRID[0]))


def test_a_threshold_keeps_its_rate_among_the_others(thresholds):
    threshold = thresholds.rate(0.01, (5,))
    rates = [(made > threshold).mean() for made in _maps()]
    assert np.mean(rates[:5]) == pytest.approx(0.01, abs=5e-4)
    assert np.mean(rates) > 0.011  # the one left out is the noisiest


def test_several_scans_of_a_person_weigh_as_much_as_one():
    one, other = _maps(6)[0], _maps(6)[5]
    alone = HealthyThresholds([summarise(made, INSIDE) for made in (one, other)])
    doubled = HealthyThresholds([summarise(made, INSIDE) for made in (one, other, other)], ["a", "b", "b"])
    assert doubled.rate(0.05) == pytest.approx(alone.rate(0.05), rel=2e-3)
    assert len(doubled.scores((1, 2))) == 1


def test_every_scan_has_the_same_weight_whatever_its_size():
    generator = np.random.default_rng(0)
    small, large = generator.random((10, 10, 1)), 10 + generator.random((100, 100, 1))
    both = HealthyThresholds([summarise(made.astype(np.float32), np.ones(made.shape, bool)) for made in (small, large)])
    assert (large > both.rate(0.25)).mean() == pytest.approx(0.5, abs=0.02)


def test_the_bound_leaves_out_the_person_and_marks_no_more_than_it_says():
    maps = [np.zeros(SHAPE, np.float32) for _ in range(4)]
    for index, made in enumerate(maps):
        made[:10, :10, :4] = index + 1.0  # 3.2 ml, more than the bound of 2 ml
    found = HealthyThresholds([summarise(made, INSIDE) for made in maps])
    assert found.bounded() == pytest.approx(4.0)
    assert found.bounded((3,)) == pytest.approx(3.0)
    bounded = OperatingPoint(None, 0.0, 0.0, (0.0, 0.0), 0.0, 4, 2.0)
    assert found.point(bounded, (3,)) == pytest.approx(3.0)


def test_a_map_without_anything_gives_the_lowest_thresholds():
    found = HealthyThresholds([summarise(np.zeros(SHAPE, np.float32), INSIDE)] * 3)
    assert found.rate(0.001) == pytest.approx(GRID[0])
    assert len(found.tails()) == len(TAIL_SHARES)
    assert found.bounded() == 0.0
