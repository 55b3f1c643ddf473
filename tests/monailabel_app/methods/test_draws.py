"""Sums over noise draws, against direct computation."""

from dataclasses import dataclass

import pytest
import torch

from monailabel_app.methods.diffusion import DiffusionConfig, DiffusionEngine
from monailabel_app.methods.draws import analyse_draws, mahalanobis, mahalanobis_map


@dataclass(frozen=True)
class Sweep:
    levels: tuple[float, ...] = (0.9, 0.6)
    draws: int = 2
    shared_noise: bool = False
    planes: tuple[str, ...] = ("axial",)


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
    torch.testing.assert_close(mahalanobis(difference, deviations, ridge), expected, rtol=1e-6, atol=1e-7)


def test_negative_contributions_become_zero_and_not_nan():
    # Two pixels that always vary together: a difference in one alone speaks against the other.
    deviations = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    difference = torch.tensor([1.0, 0.2], dtype=torch.float64)
    found = mahalanobis(difference, deviations, 0.01)
    assert found[1] == 0
    assert found[0] > 1
    torch.testing.assert_close(found, by_full_inverse(difference, deviations, 0.01))


def test_what_the_draws_disagree_on_counts_less():
    difference = torch.full((50,), 0.3, dtype=torch.float64)
    deviations = torch.zeros(50, 6, dtype=torch.float64)
    deviations[:10] = draws_about(difference[:10], 0.3, 6)
    found = mahalanobis(difference, deviations, 0.01)
    assert found[:10].mean() < 0.9 * found[10:].mean()


def test_the_map_has_the_sign_of_the_difference_and_none_outside_the_brain():
    image, mask = brain()
    draws = [torch.where(mask, 0.5 + 0.02 * torch.randn(image.shape, generator=seeded(i)), 0.7) for i in range(5)]
    found = mahalanobis_map(image, draws, mask)
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
    torch.testing.assert_close(found, torch.where(mask, (image - 0.4) / 0.1, 0.0), atol=1e-5, rtol=1e-5)


def collected(sweep: Sweep, **options):
    """The noises that a sweep hands to its restorer, and its output; the estimate is the image plus the noise / 100."""
    seen = []

    def restorer(slices):
        def restore(level, noise):
            seen.append((level, noise.clone()))
            return slices + noise / 100

        return restore

    image, mask = brain()
    engine = DiffusionEngine(DiffusionConfig())
    return seen, analyse_draws(restorer, engine, sweep, image, mask, seeded(), **options), image


def test_mean_and_variance_are_those_of_all_passes():
    seen, output, image = collected(Sweep())
    noises = torch.stack([noise[:, 0] for _, noise in seen])
    assert [level for level, _ in seen] == [0.9, 0.9, 0.6, 0.6]
    expected = image[:, :, 1:-1] + noises.mean(0).permute(1, 2, 0) / 100
    torch.testing.assert_close(output.reconstruction[:, :, 1:-1], expected, atol=1e-6, rtol=0)
    variance = noises.var(0, correction=0).permute(1, 2, 0) / 1e4
    torch.testing.assert_close(output.variance[:, :, 1:-1], variance, atol=1e-7, rtol=1e-4)
    assert (output.reconstruction[:, :, [0, -1]] == 0).all()


def test_shared_noise_is_one_field_per_draw_for_all_slices():
    seen, _, _ = collected(Sweep(shared_noise=True), batch_size=3)
    batches = [noise for _, noise in seen]
    assert len(batches) == 8  # four slices in two batches, four passes each
    for first, second in zip(batches[:4], batches[4:], strict=True):
        for field in (*first, *second):
            assert torch.equal(field, first[0])
    assert not torch.equal(batches[0], batches[1])


def test_noise_differs_between_slices_unless_it_is_shared():
    seen, _, _ = collected(Sweep())
    assert not torch.equal(seen[0][1][0], seen[0][1][1])


def test_three_planes_are_averaged_and_told_as_one_progress():
    told = []
    sweep = Sweep(levels=(0.9,), draws=1, planes=("axial", "coronal", "sagittal"))
    seen, output, image = collected(sweep, progress=told.append)
    assert [tuple(noise.shape[2:]) for _, noise in seen] == [(8, 16), (8, 6), (16, 6)]
    stacked = [torch.zeros_like(image) for _ in range(3)]
    stacked[0][:, :, 1:-1] = seen[0][1][:, 0].permute(1, 2, 0)
    stacked[1][:, 2:-2] = seen[1][1][:, 0].permute(1, 0, 2)
    stacked[2][1:-1] = seen[2][1][:, 0]
    inside = brain()[1]
    expected = image + torch.stack(stacked).mean(0) / 100
    torch.testing.assert_close(output.reconstruction[inside], expected[inside], atol=1e-6, rtol=0)
    assert told == sorted(told)
    assert told[-1] == 1.0
