"""The vector-quantised autoencoder: codes, gradients, sizes, distances."""

import pytest
import torch

from monailabel_app.networks.vq_vae_3d import Quantizer, VqVae3d, VqVaeConfig, perceptual_maps

SMALL = VqVaeConfig(channels=(8, 16), norm_groups=4, num_codes=16, code_dim=4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VqVae3d(SMALL)


def brains(count=2):
    coarse = torch.rand(count, 1, 4, 5, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (32, 40, 32), mode="trilinear")


@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 5)])
def test_every_vector_becomes_the_nearest_code_whatever_the_number_of_axes(size):
    torch.manual_seed(0)
    quantizer = Quantizer(8, 3)
    encoded = torch.randn(2, 3, *size)
    made, _ = quantizer(encoded)
    unit = torch.nn.functional.normalize(encoded, dim=1).movedim(1, -1).reshape(-1, 3)
    codes = torch.nn.functional.normalize(quantizer.codes, dim=1)
    nearest = codes[torch.cdist(unit, codes).argmin(dim=1)]
    torch.testing.assert_close(made.movedim(1, -1).reshape(-1, 3), nearest)
    torch.testing.assert_close(quantizer.lookup(quantizer.tokens(encoded)), made.detach())


def test_the_gradient_passes_straight_through_to_the_encoder_and_the_loss_moves_the_codes():
    torch.manual_seed(0)
    quantizer = Quantizer(8, 3)
    encoded = torch.randn(2, 3, 4, requires_grad=True)
    made, loss = quantizer(encoded)
    made.sum().backward(retain_graph=True)
    assert encoded.grad.abs().sum() > 0
    assert quantizer.codes.grad is None
    loss.backward()
    assert quantizer.codes.grad.abs().sum() > 0


def test_using_few_codes_costs_more_than_using_all():
    torch.manual_seed(0)
    quantizer = Quantizer(8, 3)
    codes = torch.nn.functional.normalize(quantizer.codes.detach(), dim=1)
    even, single = codes.T[None], codes[:1].T.expand(3, 8)[None]
    assert quantizer(even)[1] < quantizer(single)[1]  # both lie exactly on codes


def test_blocks_become_codes_and_come_back_at_the_pooled_size(network):
    coarse = network.coarse(brains())
    tokens = network.tokens(coarse)
    assert SMALL.reduction == 8
    assert tokens.shape == (2, 4, 5, 4)
    assert network.decode_latents(network.latents(coarse)).shape == coarse.shape == (2, 1, 16, 20, 16)


def test_latents_have_unit_variance_and_decode_as_the_codes_they_are(network):
    coarse = network.coarse(brains())
    latents = network.latents(coarse)
    torch.testing.assert_close(latents.square().mean(dim=1), torch.ones(2, 4, 5, 4))
    codes = network.quantizer.lookup(network.tokens(coarse))
    torch.testing.assert_close(network.decode_latents(latents * 1.01), network.decode(codes).clamp(0, 1))


def test_a_voxel_comes_back_where_it_was():
    """Moving voxels to channels and back is exact and keeps places."""
    from monailabel_app.networks import vq_vae_3d

    volume = torch.arange(8 * 4 * 6, dtype=torch.float32).reshape(1, 1, 8, 4, 6)
    blocks = vq_vae_3d._to_channels(volume, 2)
    assert blocks.shape == (1, 8, 4, 2, 3)
    assert set(blocks[0, :, 0, 0, 0].tolist()) == set(volume[0, 0, :2, :2, :2].flatten().tolist())
    torch.testing.assert_close(vq_vae_3d._from_channels(blocks, 2), volume, atol=0, rtol=0)


def test_a_short_training_halves_the_error_and_uses_many_codes(network):
    images = brains(4)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    first = network.loss(images).item()
    for _ in range(25):
        loss = network.loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network.loss(images).item() < first / 2
    assert len(network.tokens(network.coarse(images)).unique()) >= 8


def test_the_perceptual_distance_is_zero_between_equals_and_local(network):
    coarse = network.coarse(brains(1))
    changed = coarse.clone()
    changed[..., :4, :4, :4] = 1 - changed[..., :4, :4, :4]
    same = perceptual_maps(network.features(coarse), network.features(coarse))
    other = perceptual_maps(network.features(coarse), network.features(changed))
    assert all(float(level.abs().max()) == 0 for level in same)
    assert [tuple(level.shape) for level in other] == [(1, 8, 10, 8), (1, 4, 5, 4)]
    fine = other[0][0]
    assert fine[:2, :2, :2].mean() > 5 * fine[5:, 6:, 5:].mean()
