"""Voxel statistics of healthy maps: right where there is data, careful where there is little."""

import tracemalloc

import numpy as np
import pytest
import torch

from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics
from monailabel_app.errors import InvalidSettings

SHAPE = (14, 15, 16)


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return mask


def maps(count, seed=0, mean=0.0, std=1.0):
    generator = np.random.default_rng(seed)
    return [(mean + std * generator.normal(size=SHAPE)).astype(np.float32) for _ in range(count)]


def statistics(count=20, without=None, **options):
    return HealthyMoments(maps(count, **options), [brain()] * count).statistics(without)


def test_mean_and_deviation_are_those_of_the_maps():
    found = statistics(60, mean=3.0, std=0.5)
    inside = brain()
    assert found.mean[inside].mean() == pytest.approx(3.0, abs=0.02)
    assert found.std[inside].mean() == pytest.approx(0.5, rel=0.05)


def test_without_some_scans_is_what_the_others_give():
    values, inside = maps(8), brain()
    some = HealthyMoments(values, [inside] * 8).statistics(without=[1, 4])
    others = HealthyMoments([v for i, v in enumerate(values) if i not in (1, 4)], [inside] * 6).statistics()
    np.testing.assert_allclose(some.mean[inside], others.mean[inside], atol=1e-5)
    np.testing.assert_allclose(some.std[inside], others.std[inside], atol=1e-5)


def test_a_region_that_varies_more_gets_a_larger_deviation():
    values = maps(40)
    for value in values:
        value[:7] *= 5
    found = HealthyMoments(values, [brain()] * 40).statistics()
    assert found.std[3:5, 5:10, 5:10].mean() > 2 * found.std[9:12, 5:10, 5:10].mean()


def test_the_deviation_is_positive_and_finite_everywhere_even_for_constant_maps():
    constant = [np.full(SHAPE, 0.25, np.float32)] * 5
    found = HealthyMoments(constant, [brain()] * 5).statistics()
    assert np.isfinite(found.std).all()
    assert (found.std >= 1e-6 * 0.99).all()
    np.testing.assert_allclose(found.mean[brain()], 0.25, atol=1e-6)
    assert np.isfinite(found.standardize(constant[0], brain())).all()


def test_the_deviation_has_a_floor_at_its_own_tenth_percentile():
    found = statistics(20)
    assert np.isclose(found.std, found.std.min(), rtol=1e-6)[brain()].mean() > 0.05


def test_statistics_without_a_scan_are_those_of_the_others():
    values, masks = maps(8), [brain()] * 8
    masks[3] = brain() & (np.arange(SHAPE[0]) < 9)[:, None, None]
    left_out = HealthyMoments(values, masks).statistics(without=3)
    others = HealthyMoments(values[:3] + values[4:], masks[:3] + masks[4:]).statistics()
    np.testing.assert_allclose(left_out.mean, others.mean, atol=1e-5)
    np.testing.assert_allclose(left_out.std, others.std, rtol=1e-4)


def test_a_scan_does_not_shape_the_statistics_it_is_judged_with():
    values = maps(10)
    values[4] = values[4] + 50
    moments = HealthyMoments(values, [brain()] * 10)
    with_it = moments.statistics().standardize(values[4], brain())[brain()].mean()
    without = moments.statistics(without=4).standardize(values[4], brain())[brain()].mean()
    assert without > 5 * with_it


def test_values_outside_the_masks_do_not_matter():
    values, inside = maps(6), brain()
    spoilt = [np.where(inside, value, 1e6).astype(np.float32) for value in values]
    clean = HealthyMoments(values, [inside] * 6).statistics()
    np.testing.assert_allclose(HealthyMoments(spoilt, [inside] * 6).statistics().mean, clean.mean, atol=1e-5)


def test_standardising_is_zero_outside_the_brain():
    stats = VoxelStatistics(np.full(SHAPE, 1.0, np.float32), np.full(SHAPE, 2.0, np.float32))
    z = stats.standardize(np.full(SHAPE, 5.0, np.float32), brain())
    assert z.dtype == np.float32
    assert (z[brain()] == 2.0).all()
    assert (z[~brain()] == 0).all()


def test_fewer_than_three_scans_are_refused():
    with pytest.raises(InvalidSettings, match="at least 3 healthy scans"):
        HealthyMoments(maps(2), [brain()] * 2)


def test_slices_have_the_statistics_of_a_volume_of_equal_slices():
    """No neighbours across the slice: the counts are not diluted by what is not there."""
    generator = np.random.default_rng(5)
    flat = [generator.normal(size=(12, 14, 1)) for _ in range(30)]
    thick = [np.repeat(values, 25, axis=2) for values in flat]
    of_slices = HealthyMoments(flat, [np.ones_like(v, dtype=bool) for v in flat]).statistics()
    of_volumes = HealthyMoments(thick, [np.ones_like(v, dtype=bool) for v in thick]).statistics()
    np.testing.assert_allclose(of_slices.mean[..., 0], of_volumes.mean[..., 12], atol=1e-5)
    np.testing.assert_allclose(of_slices.std[..., 0], of_volumes.std[..., 12], rtol=0.02)


def test_many_prior_scans_leave_nearly_the_same_deviation_everywhere():
    generator = np.random.default_rng(4)
    spread = np.where(np.arange(16)[:, None, None] < 8, 0.02, 0.2)
    maps = [(spread * generator.normal(size=(16, 16, 16))).astype(np.float32) for _ in range(8)]
    masks = [np.ones((16, 16, 16), bool)] * 8
    few, many = (HealthyMoments(maps, masks, prior_scans=prior).statistics().std for prior in (4, 1000))
    assert few[12].mean() > 1.5 * few[3].mean()
    assert many[12].mean() < 1.05 * many[3].mean()


@pytest.mark.parametrize("shape", [(2**20, 2**10, 2**10), (4, 4, 3), (-4, -4, 4), (0, 4, 4), (8, 8)])
def test_a_packed_shape_that_the_voxels_do_not_fill_is_refused_before_memory_is_taken(shape):
    values = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)
    tensors = VoxelStatistics(values, values + 1).packed()
    tensors["shape"] = torch.tensor(shape)
    tracemalloc.start()
    with pytest.raises(ValueError, match="as many voxels"):
        VoxelStatistics.unpacked(tensors)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
