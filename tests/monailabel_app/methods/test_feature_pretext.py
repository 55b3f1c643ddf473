"""The encoder's tasks: each can be learnt, repeats from its seed, and leaves what is outside the brain alone."""

import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods.feature_pretext import (
    KINDS,
    PRETEXTS,
    build_head,
    corrupted,
    pretext_loss,
    rendering,
)
from monailabel_app.networks.resnet_trunk import ResNetTrunk, TrunkConfig

TRUNK = TrunkConfig(width=8, kernel=3)


def brains(n=4, seed=0):
    """Elliptic slices with smooth structure: (n, 1, 32, 40), zero outside."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 40), indexing="ij")
    phase = torch.rand(n, 1, 1, 1, generator=generator) * 6
    inside = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1).float()
    return (0.5 + 0.2 * torch.sin(9 * x + phase) * torch.cos(7 * y)) * inside


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_a_task_is_learnt(pretext):
    torch.manual_seed(0)
    trunk = ResNetTrunk(TRUNK)
    head = build_head(pretext, TRUNK.channels)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=5e-3)
    losses, draws = [], generator(1)
    for _ in range(40):
        loss = pretext_loss(pretext, trunk, head, brains(4), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    for name, parameter in trunk.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_a_loss_repeats_from_its_seed_alone(pretext):
    torch.manual_seed(0)
    trunk, head = ResNetTrunk(TRUNK), build_head(pretext, TRUNK.channels)
    first = float(pretext_loss(pretext, trunk, head, brains(), generator(5)).detach())
    torch.rand(3)
    assert float(pretext_loss(pretext, trunk, head, brains(), generator(5)).detach()) == first
    assert float(pretext_loss(pretext, trunk, head, brains(), generator(6)).detach()) != first


def test_renderings_and_corruptions_stay_in_range_and_out_of_the_background():
    slices = brains(16)
    bent, (spoilt, kinds) = rendering(slices, generator(2)), corrupted(slices, generator(3))
    for made in (bent, spoilt):
        assert (made[slices == 0] == 0).all()
        assert made.min() >= 0
        assert made.max() <= 1
        assert (made - slices).abs().max() > 0.05
    assert set(kinds.unique().tolist()) == set(range(len(KINDS)))


def test_the_kind_says_where_and_how_a_slice_was_corrupted():
    slices = brains(64)
    spoilt, kinds = corrupted(slices, generator(4))
    change = (spoilt - slices)[:, 0]
    assert change[kinds == KINDS.index("brighter")].mean() > 0.03
    assert change[kinds == KINDS.index("darker")].mean() < -0.03
    untouched = (kinds == 0) & (slices[:, 0] > 0)
    assert change[untouched].abs().mean() < 0.2 * change[kinds > 0].abs().mean()


def test_empty_slices_give_a_finite_loss():
    torch.manual_seed(0)
    for pretext in PRETEXTS:
        trunk, head = ResNetTrunk(TRUNK), build_head(pretext, TRUNK.channels)
        assert torch.isfinite(pretext_loss(pretext, trunk, head, torch.zeros(2, 1, 16, 16), generator()))


def test_an_unknown_task_is_refused():
    with pytest.raises(InvalidSettings, match=r"contrast, restore, corruption.*'jigsaw'"):
        build_head("jigsaw", 8)
