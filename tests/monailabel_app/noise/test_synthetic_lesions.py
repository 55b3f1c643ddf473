"""Synthetic lesions: inside the brain, of every size and both signs, and the same from the same seed."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.noise.synthetic_lesions import FILLINGS, LesionConfig, implant_synthetic

CONFIG = LesionConfig()


def brains(n: int = 64) -> torch.Tensor:
    """Round smooth slices (n, 1, 48, 64), each a little different, with zero around."""
    x, y = torch.meshgrid(torch.arange(48.0) - 24, torch.arange(64.0) - 32, indexing="ij")
    inside = (x / 20) ** 2 + (y / 28) ** 2 < 1
    values = 0.45 + 0.1 * torch.sin(x / 4) * torch.cos(y / 5)
    scale = torch.linspace(0.8, 1.2, n)[:, None, None, None]
    return torch.where(inside, values, 0.0)[None, None] * scale


def only(filling: str, **changes) -> LesionConfig:
    weights = tuple(float(name == filling) for name in FILLINGS)
    return replace(CONFIG, fillings=weights, healthy_share=0.0, tissue_share=0.0, **changes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_changes_outside_the_brain_nor_outside_the_lesions():
    slices = brains()
    made = implant_synthetic(slices, CONFIG, seeded())
    assert (made.images[slices == 0] == 0).all()
    assert (made.share[slices == 0] == 0).all()
    untouched = made.share < 1e-6
    torch.testing.assert_close(made.images[untouched], made.clean[untouched], atol=1e-5, rtol=0)
    torch.testing.assert_close(made.clean, slices)
    assert made.images.min() >= 0
    assert made.images.max() <= 1


def test_the_same_seed_gives_the_same_lesions_and_another_seed_others():
    slices = brains(8)
    first, again, other = (implant_synthetic(slices, LesionConfig(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.severity, again.severity)
    assert not torch.equal(first.images, other.images)


def test_the_asked_share_of_slices_stays_healthy():
    made = implant_synthetic(brains(400), replace(CONFIG, healthy_share=0.4), seeded())
    healthy = (made.share.flatten(1).amax(dim=1) == 0).float().mean()
    assert 0.3 < healthy < 0.5


def test_sizes_range_from_a_few_pixels_to_a_territory():
    made = implant_synthetic(brains(400), only("relative", lesions=1), seeded())
    sizes = (made.share > 0.5).flatten(1).sum(dim=1)
    assert (sizes < 12).float().mean() > 0.1
    assert (sizes > 200).float().mean() > 0.1
    assert (sizes > 0).float().mean() > 0.95


def test_lesions_are_darker_or_brighter_as_often_as_asked():
    for share in (0.0, 0.5, 1.0):
        made = implant_synthetic(brains(200), only("absolute", lesions=1, darker_share=share), seeded())
        darker = (made.images - made.clean).flatten(1).sum(dim=1) < 0
        assert abs(darker.float().mean() - share) < 0.12


def test_a_lesion_grows_stronger_with_its_severity():
    weak, strong = (
        implant_synthetic(brains(32), only("relative", severity=(level, level)), seeded()) for level in (0.2, 0.8)
    )
    torch.testing.assert_close(weak.share, strong.share)
    change = [(made.images - made.clean).abs().mean() for made in (weak, strong)]
    assert 2.5 < change[1] / change[0] < 5


@pytest.mark.parametrize("filling", FILLINGS)
def test_every_filling_changes_the_slice(filling):
    made = implant_synthetic(brains(32), only(filling, severity=(0.9, 0.9)), seeded())
    inside = made.share > 0.9
    assert (made.images - made.clean)[inside].abs().mean() > 0.03


def test_a_lesion_that_keeps_to_a_tissue_spares_the_other():
    slices = torch.where(torch.arange(48)[None, None, :, None] < 24, 0.2, 0.8).expand(64, 1, 48, 64).contiguous()
    config = replace(only("relative", lesions=1, radius=(15.0, 20.0)), tissue_share=1.0)
    share = implant_synthetic(slices, config, seeded()).share
    low, high = share[:, :, :24].flatten(1).amax(dim=1), share[:, :, 24:].flatten(1).amax(dim=1)
    assert (torch.minimum(low, high) < 0.01).all()
    assert (torch.maximum(low, high) > 0.9).all()


def test_the_scale_follows_a_bright_lesion_as_normalisation_would():
    config = only("absolute", lesions=1, darker_share=0.0, radius=(14.0, 16.0), severity=(1.0, 1.0))
    config = replace(config, contrast=(0.8, 0.9), fixed_quantile=0.98)
    slices = brains(16)
    made = implant_synthetic(slices, config, seeded())
    brain = slices[0] > 0
    for before, after, clean in zip(slices, made.images, made.clean, strict=True):
        assert torch.quantile(after[brain], 0.98) == pytest.approx(float(torch.quantile(before[brain], 0.98)), abs=0.02)
        assert clean[brain].mean() < 0.9 * before[brain].mean()


def test_settings_without_meaning_are_refused():
    for changes in ({"radius": (0.0, 3.0)}, {"fillings": (1.0,)}, {"lesions": 0}, {"severity": (0.5, 1.5)}):
        with pytest.raises(InvalidSettings, match="expected"):
            implant_synthetic(brains(2), replace(CONFIG, **changes), seeded())
