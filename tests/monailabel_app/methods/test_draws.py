"""Reconstructions from several noise draws, and their sums."""

from dataclasses import dataclass

import torch

from monailabel_app.methods.diffusion import DiffusionConfig, DiffusionEngine
from monailabel_app.methods.draws import analyse_draws


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


def collected(sweep: Sweep, **options):
    """The noises that a sweep hands to its restorer, and its output; the estimate is the image plus the noise / 100."""
    seen = []

    def restorer(slices):
        def restore(level, noise):
            seen.append((level, noise.clone()))
            return slices + noise / 100

        return restore

    image, _ = brain()
    engine = DiffusionEngine(DiffusionConfig())
    return seen, analyse_draws(restorer, engine, sweep, image, seeded(), **options), image


def test_mean_and_variance_are_those_of_all_passes():
    seen, output, image = collected(Sweep())
    noises = torch.stack([noise[:, 0] for _, noise in seen])
    assert [level for level, _ in seen] == [0.9, 0.9, 0.6, 0.6]
    expected = image[:, :, 1:-1] + noises.mean(0).permute(1, 2, 0) / 100
    torch.testing.assert_close(output.reconstruction[:, :, 1:-1], expected, atol=1e-6, rtol=0)
    variance = noises.var(0, correction=0).permute(1, 2, 0) / 1e4
    torch.testing.assert_close(output.variance[:, :, 1:-1], variance, atol=1e-7, rtol=1e-4)
    assert (output.reconstruction[:, :, [0, -1]] == 0).all()
    assert len(output.draws) == 4
    torch.testing.assert_close(torch.stack(tuple(output.draws)).mean(0), output.reconstruction)


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
