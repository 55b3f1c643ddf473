"""The Mahalanobis distance over draws, against the full inverse."""

import pytest
import torch

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring.mahalanobis import mahalanobis_map, mahalanobis_shares


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brain(shape=(8, 16, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[1:-1, 2:-2, 1:-1] = True
    return torch.where(mask, 0.2 + 0.6 * torch.rand(shape, generator=seeded(3)), 0.0), mask


def by_full_inverse(difference: torch.Tensor, deviations: torch.Tensor, ridge: float) -> torch.Tensor:
    covariance = deviations @ deviations.T / (deviations.shape[1] - 1) + ridge * torch.eye(len(difference)).double()
    squared = difference * (torch.linalg.inv(covariance) @ difference)
    return squared.clamp(min=0).sqrt()


def draws_about(difference_from: torch.Tensor, spread: float, count: int) -> torch.Tensor:
    columns = spread * torch.randn(len(difference_from), count, generator=seeded(5), dtype=torch.float64)
    return columns - columns.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(("count", "spread", "ridge"), [(2, 0.1, 0.01), (10, 0.05, 0.01), (10, 1.0, 1e-4)])
def test_woodbury_gives_what_the_full_inverse_gives(count, spread, ridge):
    difference = torch.randn(120, generator=seeded(1), dtype=torch.float64)
    deviations = draws_about(difference, spread, count)
    expected = by_full_inverse(difference, deviations, ridge)
    torch.testing.assert_close(mahalanobis_shares(difference, deviations, ridge), expected, rtol=1e-6, atol=1e-7)


def test_negative_contributions_become_zero_and_not_nan():
    # Two pixels that always vary together: a difference in one alone speaks against the other.
    deviations = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    difference = torch.tensor([1.0, 0.2], dtype=torch.float64)
    found = mahalanobis_shares(difference, deviations, 0.01)
    assert found[1] == 0
    assert found[0] > 1
    torch.testing.assert_close(found, by_full_inverse(difference, deviations, 0.01))


def test_what_the_draws_disagree_on_counts_less():
    difference = torch.full((50,), 0.3, dtype=torch.float64)
    deviations = torch.zeros(50, 6, dtype=torch.float64)
    deviations[:10] = draws_about(difference[:10], 0.3, 6)
    found = mahalanobis_shares(difference, deviations, 0.01)
    assert found[:10].mean() < 0.9 * found[10:].mean()


def test_the_map_has_the_sign_of_the_difference_and_none_outside_the_brain():
    image, mask = brain()
    draws = [torch.where(mask, 0.5 + 0.02 * torch.randn(image.shape, generator=seeded(i)), 0.7) for i in range(5)]
    found = torch.from_numpy(mahalanobis_map(image, [draw.numpy() for draw in draws], mask))
    mean = torch.stack(draws).mean(0)
    assert found.dtype == torch.float32
    assert (found[~mask] == 0).all()
    told = found != 0
    assert torch.equal(found[told].sign(), (image - mean)[told].sign())
    inside = mask[:, :, 2]
    columns = torch.stack([draw[:, :, 2][inside] for draw in draws], 1).double()
    centre = columns.mean(1, keepdim=True)
    expected = by_full_inverse(image[:, :, 2][inside].double() - centre[:, 0], columns - centre, 0.01)
    torch.testing.assert_close(found[:, :, 2][inside].abs(), expected.float(), rtol=1e-4, atol=1e-5)


def test_one_draw_gives_the_scaled_difference():
    image, mask = brain()
    found = mahalanobis_map(image, [torch.full_like(image, 0.4)], mask)
    expected = torch.where(mask, (image - 0.4) / 0.1, 0.0)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("count", "ridge"), [(0, 0.01), (2, 0.0), (2, float("nan"))])
def test_no_reconstruction_or_no_ridge_is_refused(count, ridge):
    image, mask = brain()
    with pytest.raises(InvalidSettings, match="ridge above 0"):
        mahalanobis_map(image, [image] * count, mask, ridge=ridge)


def test_a_reconstruction_of_another_shape_is_refused():
    image, mask = brain()
    with pytest.raises(InvalidVolume, match="one shape"):
        mahalanobis_map(image, [image, image[1:]], mask)
