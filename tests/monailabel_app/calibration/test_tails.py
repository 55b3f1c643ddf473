"""The share of healthy voxels above a value: right where it is tabulated, growing without end beyond."""

import numpy as np
import pytest

from monailabel_app.calibration.tails import TAIL_SHARES, rarity, tail_table
from monailabel_app.errors import InvalidSettings


def _healthy(seed: int, count: int = 20_000) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(size=count)).astype(np.float32)


def test_the_table_holds_the_values_that_these_shares_exceed():
    scans = [_healthy(seed) for seed in range(5)]
    table = tail_table(scans)
    pooled = np.concatenate(scans)
    for value, share in zip(table, TAIL_SHARES, strict=True):
        assert (pooled > value).mean() == pytest.approx(share, abs=3e-5)


def test_every_patient_has_the_same_weight_whatever_the_number_of_scans():
    low, high = np.linspace(0.1, 1, 1000), np.linspace(10, 11, 1000)
    once = tail_table([low, high], ["a", "b"])
    thrice = tail_table([low, low, low, high], ["a", "a", "a", "b"])
    assert once[1] == pytest.approx(thrice[1], abs=0.02)
    assert once[1] > 10


def test_rarity_is_the_logarithm_of_the_share_at_the_tabulated_values():
    table = tail_table([_healthy(seed) for seed in range(5)])
    np.testing.assert_allclose(rarity(np.array(table), table), -np.log10(TAIL_SHARES), atol=1e-5)


def test_rarity_grows_beyond_the_table_so_that_lesions_stay_apart():
    table = tail_table([_healthy(seed) for seed in range(5)])
    values = np.linspace(0, 30, 400)
    rare = rarity(values, table)
    assert rare[0] == 0
    assert (np.diff(rare) > 0).all()
    assert rare[-1] > 10


def test_a_one_sided_map_that_is_zero_on_most_of_the_brain_is_no_trouble():
    scans = [np.maximum(np.random.default_rng(seed).normal(size=20_000), 0.8) - 0.8 for seed in range(5)]
    table = tail_table(scans)
    assert table[0] == 0
    rare = rarity(np.array([0.0, 0.1, 5.0]), table)
    assert rare[0] == 0
    assert rare[0] < rare[1] < rare[2]


def test_the_scale_of_a_map_makes_no_difference():
    scans = [_healthy(seed) for seed in range(5)]
    one, other = tail_table(scans), tail_table([7 * scan for scan in scans])
    np.testing.assert_allclose(rarity(scans[0], one), rarity(7 * scans[0], other), atol=1e-3)


@pytest.mark.parametrize("table", [(), (1.0, 2.0), (0.0,) * len(TAIL_SHARES)])
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(InvalidSettings, match="calibrate the model again"):
        rarity(np.ones(3), table)
