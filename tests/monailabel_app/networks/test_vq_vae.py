"""The vector-quantised autoencoder: codes that follow the data, and images that change only where latents do."""

import pytest
import torch

from monailabel_app.networks.vq_vae import Quantizer, VqVae, VqVaeConfig, spectral_loss

SMALL = VqVaeConfig(channels=(8, 16), code_dim=4, num_codes=16)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int, dim: int, spread: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (4, dim, 16, 16) around ``count`` centres far apart, and the centres."""
    centres = 3 * torch.randn(count, dim, generator=seeded(1))
    chosen = torch.randint(count, (4, 16, 16), generator=seeded(2))
    noise = spread * torch.randn(4, dim, 16, 16, generator=seeded(3))
    return centres[chosen].movedim(-1, 1) + noise, centres


@pytest.mark.parametrize("groups", [1, 2])
def test_the_codebook_follows_the_encoded_vectors_and_does_not_collapse(groups):
    quantizer = Quantizer(24, 6, groups)
    encoded, _ = clusters(12, 6)
    for _ in range(200):
        quantizer.learn(encoded, seeded())
    quantized, loss = quantizer(encoded)
    # As k-means: a pair of clusters may share a code, most do not.
    assert (quantized - encoded).square().mean() < 0.05 * encoded.var()
    assert loss < 0.05 * encoded.var()
    assert (quantizer.perplexity(quantizer.tokens(encoded)) > 10).all()


def test_a_codebook_that_never_learnt_is_a_collapsed_one():
    quantizer = Quantizer(24, 6, 1)
    encoded, _ = clusters(12, 6)
    assert quantizer.perplexity(quantizer.tokens(encoded)).item() == pytest.approx(1)


def test_the_nearest_code_is_the_nearest():
    quantizer = Quantizer(9, 4, 2)
    quantizer.codes.normal_(generator=seeded(4))
    encoded = torch.randn(3, 4, 5, 6, generator=seeded(5))
    tokens = quantizer.tokens(encoded)
    assert tokens.shape == (3, 2, 5, 6)
    for group in range(2):
        rows = encoded[:, 2 * group : 2 * group + 2].movedim(1, -1).reshape(-1, 2)
        expected = torch.cdist(rows, quantizer.codes[group]).argmin(dim=1)
        assert torch.equal(tokens[:, group].flatten(), expected)
    quantized = quantizer.lookup(tokens)
    assert torch.equal(quantizer.lookup(quantizer.tokens(quantized)), quantized)


def test_the_gradient_passes_straight_through_the_codes():
    quantizer = Quantizer(9, 4, 1)
    quantizer.codes.normal_(generator=seeded(4))
    encoded = torch.randn(2, 4, 3, 3, generator=seeded(5), requires_grad=True)
    weights = torch.randn(2, 4, 3, 3, generator=seeded(6))
    (quantizer(encoded)[0] * weights).sum().backward()
    torch.testing.assert_close(encoded.grad, weights)


def test_codes_are_in_buffers_so_that_averaging_weights_leaves_them_alone():
    model = VqVae(SMALL)
    assert not any("codes" in name for name, _ in model.named_parameters())
    assert "quantizer.codes" in model.state_dict()


@pytest.mark.parametrize("size", [(16, 24), (72, 96)])
def test_latents_are_reduced_and_decode_to_the_size_of_the_image(size):
    model = VqVae(SMALL)
    images = torch.rand(2, 1, *size, generator=seeded())
    latents = model.quantized(images)
    assert SMALL.reduction == 4
    assert latents.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert model.decode(latents).shape == images.shape


def test_volumes_work_like_slices():
    model = VqVae(VqVaeConfig(spatial_dims=3, channels=(4, 8), code_dim=4, num_codes=16))
    volumes = torch.rand(1, 1, 8, 12, 8, generator=seeded())
    latents = model.quantized(volumes)
    assert latents.shape == (1, 4, 2, 3, 2)
    assert model.decode(latents).shape == volumes.shape


def test_decoding_changes_only_around_the_latents_that_changed():
    torch.manual_seed(0)
    model = VqVae(SMALL)
    latents = torch.randn(1, 4, 18, 24, generator=seeded())
    changed = latents.clone()
    changed[..., 9, 12] += 1.0
    difference = (model.decode(changed) - model.decode(latents)).abs()[0, 0] > 0
    where = torch.nonzero(difference)
    assert len(where)
    assert (where[:, 0] - 4 * 9.5).abs().max() <= 24
    assert (where[:, 1] - 4 * 12.5).abs().max() <= 24


def test_the_spectral_loss_sees_blur_but_not_a_shift_and_has_a_gradient_at_zero():
    sharp = torch.randn(2, 1, 16, 16, generator=seeded())
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    shifted = sharp.roll(3, dims=2)
    assert spectral_loss(shifted, sharp) < 1e-6 < spectral_loss(blurred, sharp)
    empty = torch.zeros(1, 1, 8, 8, requires_grad=True)
    spectral_loss(empty, sharp[:1, :, :8, :8]).backward()
    assert torch.isfinite(empty.grad).all()
