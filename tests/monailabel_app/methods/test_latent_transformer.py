"""Codes in order, their likelihood and its map."""

import math

import pytest
import torch

from monailabel_app.errors import InvalidVolume
from monailabel_app.methods import latent_transformer as method
from tests.monailabel_app.whole_brains import batch, brain

CONFIG = method.TINY


@pytest.fixture
def network():
    torch.manual_seed(0)
    return method.build(CONFIG).eval()


def codes(seed=0, size=(1, 4, 5, 4)):
    return torch.randint(CONFIG.autoencoder.num_codes, size, generator=torch.Generator().manual_seed(seed))


def test_the_compact_model_has_at_most_one_and_a_half_million_weights():
    assert sum(weight.numel() for weight in method.build(method.COMPACT).state_dict().values()) <= 1_500_000


def test_the_surprise_of_a_code_depends_on_those_before_it_alone(network):
    changed = codes().clone()
    changed[0, 2, 2, 2] = (changed[0, 2, 2, 2] + 1) % CONFIG.autoencoder.num_codes
    with torch.no_grad():
        before, after = network.negative_log_likelihood(codes()), network.negative_log_likelihood(changed)
    place = 2 * 20 + 2 * 4 + 2
    torch.testing.assert_close(before.flatten()[:place], after.flatten()[:place], atol=0, rtol=0)
    assert not torch.equal(before.flatten()[place + 1 :], after.flatten()[place + 1 :])


def test_the_likelihoods_of_all_codes_at_a_place_sum_to_at_most_one(network):
    """The begin token takes the rest, which is small."""
    total = 0.0
    for code in range(CONFIG.autoencoder.num_codes):
        sequence = codes().clone()
        sequence[0, 1, 0, 0] = code
        with torch.no_grad():
            total += math.exp(-float(network.negative_log_likelihood(sequence)[0, 1, 0, 0]))
    assert 0.7 < total <= 1 + 1e-5


def test_a_learnt_order_is_less_surprising_than_the_same_codes_shuffled(network):
    pattern = (torch.arange(80) % 7).reshape(1, 4, 5, 4)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        network.negative_log_likelihood(pattern).mean().backward()
        optimizer.step()
    shuffled = pattern.flatten()[torch.randperm(80, generator=torch.Generator().manual_seed(0))].reshape(pattern.shape)
    with torch.no_grad():
        known = network.negative_log_likelihood(pattern).sum()
        assert known < 0.3 * network.negative_log_likelihood(shuffled).sum()


def test_the_map_is_laid_over_the_blocks_and_the_score_is_the_sum(network):
    image, mask = brain()
    output = method.analyse(network, CONFIG, image, mask, torch.Generator())
    assert output.reconstruction is None
    assert output.maps["surprise"].shape == image.shape
    assert (output.maps["surprise"][~mask] == 0).all()
    with torch.no_grad():
        found = network.autoencoder.tokens(network.autoencoder.coarse(image[None, None]))
        total = float(network.negative_log_likelihood(found).sum())
    assert output.figures["surprise"] == pytest.approx(total, rel=0.02)


def test_first_the_autoencoder_learns_and_then_only_the_transformer(network):
    learning = {}
    for share in (0.0, CONFIG.autoencoder_share):
        method.begin_step(network, CONFIG, share)
        network.zero_grad(set_to_none=True)
        method.training_loss(network, CONFIG, batch(), torch.Generator()).backward()
        learning[share] = {
            name.split(".")[0] for name, weight in network.named_parameters() if weight.grad is not None
        }
    assert learning == {0.0: {"autoencoder"}, CONFIG.autoencoder_share: {"transformer"}}


def test_a_sequence_longer_than_the_model_s_is_refused(network):
    with pytest.raises(InvalidVolume, match="at most 1080 codes, got 2000"):
        network.negative_log_likelihood(codes(size=(1, 10, 20, 10)))
