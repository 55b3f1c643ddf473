"""A calibration that rests on a part of the scans at hand is noticed, and one that rests on none is not."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics
from monailabel_app.pipelines.shared_scans import Shared, _on_the_upper_level, count_shared

SHAPE, CALIBRATED_ON = (44, 48, 40), 12


@pytest.fixture(scope="module")
def people():
    """Raw maps of 24 people with anatomy in common, whose brains end at different voxels; 12 of them calibrated."""
    rng = np.random.default_rng(0)
    common = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) * 20
    maps, masks = [], []
    for _ in range(24):
        own = ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.8)
        coarse = ndimage.gaussian_filter(rng.normal(size=SHAPE), 6) * 10
        maps.append((common + own + coarse).astype(np.float32))
        mask = np.zeros(SHAPE, dtype=bool)
        mask[(slice(int(rng.integers(0, 3)), -1),) * 3] = True
        masks.append(mask)
    found = HealthyMoments(maps[:CALIBRATED_ON], masks[:CALIBRATED_ON]).statistics()
    stored = VoxelStatistics(*(values.astype(np.float16).astype(np.float32) for values in (found.mean, found.std)))
    return maps, masks, stored


@pytest.mark.parametrize(("known", "strangers"), [(0, 12), (0, 5), (6, 0), (6, 6), (10, 3), (12, 6), (12, 0)])
def test_the_number_of_shared_scans_is_found(people, known, strangers):
    maps, masks, own = people
    chosen = [*range(known), *range(CALIBRATED_ON, CALIBRATED_ON + strangers)]
    found = count_shared(own, CALIBRATED_ON, [maps[i] for i in chosen], [masks[i] for i in chosen])
    assert abs(found.scans - known) <= 1


@pytest.mark.parametrize(("known", "strangers"), [(10, 5), (12, 6), (11, 8)])
def test_among_enough_scans_the_number_is_exact_and_said_to_be_so(people, known, strangers):
    maps, masks, _ = people
    # Some people have more of their own than others, which moves the number told as a whole.
    common = np.mean(maps, axis=0)
    uneven = [common + (0.6 + 0.8 * (index % 2)) * (values - common) for index, values in enumerate(maps)]
    moments = HealthyMoments(uneven[:CALIBRATED_ON], masks[:CALIBRATED_ON]).statistics()
    chosen = [*range(known), *range(CALIBRATED_ON, CALIBRATED_ON + strangers)]
    picked = [uneven[i] for i in chosen], [masks[i] for i in chosen]
    assert count_shared(moments, CALIBRATED_ON, *picked) == Shared(known, True)


def test_a_number_is_called_exact_only_where_no_scan_can_lie_on_the_wrong_level():
    """The scans that are in one only blur the shares: with so few voxels by 0.1 to 0.2, that is one scan in some."""
    rng, counted = np.random.default_rng(0), []
    for _ in range(200):
        shared = int(rng.integers(5, 20))
        people = rng.normal(size=(60 - shared, 1000))
        found = _on_the_upper_level(people[30 - shared :], people[:30].mean(axis=0), 30)
        counted += [(found, shared)] * (found is not None)
    assert len(counted) > 15
    assert [found for found, _ in counted] == [shared for _, shared in counted]


def test_scans_of_another_kind_are_none_of_them(people):
    maps, masks, own = people
    others = [2 * values + 3 for values in maps[CALIBRATED_ON:]]
    assert count_shared(own, CALIBRATED_ON, others, masks[CALIBRATED_ON:]) == Shared(0)


def test_few_voxels_tell_nothing(people):
    maps, masks, own = people
    flat = VoxelStatistics(own.mean[..., :1], own.std[..., :1])
    flats = ([values[..., :1] for values in group] for group in (maps[:6], masks[:6]))
    assert count_shared(flat, CALIBRATED_ON, *flats) == Shared(0)
