"""Healthy statistics per place, on maps whose mean and deviation are known."""

import pytest
import torch

from monailabel_app.methods.location_statistics import LocationStatistics

GRID = (6, 8, 5)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(count=900, size=(12, 16)):
    """Maps whose mean rises along x and whose deviation rises with height, with their insides and heights."""
    heights = torch.rand(count, generator=seeded(1))
    x = torch.linspace(0, 1, size[0])[None, :, None]
    noise = torch.randn(count, *size, generator=seeded(2))
    return 10 * x + (1 + 3 * heights[:, None, None]) * noise, torch.ones(count, *size, dtype=torch.bool), heights


def learnt(quantile=0.975) -> LocationStatistics:
    statistics = LocationStatistics(GRID)
    statistics.learn(*slices(), quantile)
    return statistics


def test_mean_and_deviation_are_those_of_the_place():
    statistics = learnt()
    assert statistics.mean[0].mean() == pytest.approx(0.8, abs=0.8)
    assert statistics.mean[-1].mean() == pytest.approx(9.2, abs=0.8)
    # Pooling two by two cells keeps the spread of the single values, not that of their mean.
    low, high = statistics.std[..., 0].mean(), statistics.std[..., -1].mean()
    assert low < 2.5 < 3 < high


def test_standardised_healthy_values_exceed_the_limit_as_often_as_asked_at_every_height():
    statistics = learnt(0.975)
    for height in (0.1, 0.5, 0.9):
        volume = 10 * torch.linspace(0, 1, 12)[:, None, None].expand(12, 16, 50).clone()
        heights = (torch.arange(50) + 0.5) / 50
        volume += (1 + 3 * heights) * torch.randn(12, 16, 50, generator=seeded(3))
        found = statistics.exceeding(statistics.standardise(volume), torch.ones(12, 16, 50, dtype=torch.bool), 0.5)
        at = int(height * 50)
        assert found[..., at - 4 : at + 5].float().mean() == pytest.approx(0.025, abs=0.02)


def test_the_same_value_is_unusual_in_one_place_and_not_in_another():
    standardised = learnt().standardise(torch.full((12, 16, 10), 9.0))
    assert standardised[0].min() > standardised[-1].max()


def test_one_slice_per_brain_holds_for_every_height():
    maps, inside, heights = slices()
    statistics = LocationStatistics(GRID)
    statistics.learn(maps, inside, torch.full_like(heights, torch.nan), 0.9)
    assert (statistics.mean - statistics.mean[..., :1]).abs().max() < 0.5
    assert statistics.standardise(torch.zeros(12, 16, 1)).shape == (12, 16, 1)


def test_places_without_brain_take_the_brain_s_mean():
    maps, inside, heights = slices()
    inside[:, :, 8:] = False
    maps[:, :, 8:] = 1e6
    statistics = LocationStatistics(GRID)
    statistics.learn(maps, inside, heights, 0.9)
    assert statistics.mean.max() < 20
    assert torch.isfinite(statistics.std).all()


def test_before_it_learnt_anything_the_scan_s_own_quantile_decides():
    statistics = LocationStatistics(GRID)
    volume = torch.randn(12, 16, 10, generator=seeded())
    assert torch.equal(statistics.standardise(volume), volume)
    inside = volume > -10
    inside[:6] = False
    found = statistics.exceeding(volume, inside, 0.9)
    assert found[inside].float().mean() == pytest.approx(0.1, abs=0.01)
    assert not found[~inside].any()
    assert not statistics.exceeding(volume, inside & False, 0.9).any()
