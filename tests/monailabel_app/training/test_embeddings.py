import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods import ddpm
from monailabel_app.training.embeddings import SLABS, BrainEncoder
from tests.monailabel_app.synthetic import TINY, random_cache


@pytest.fixture(scope="module")
def cache():
    return random_cache(2)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return BrainEncoder(ddpm.build(TINY["ddpm"]).eval(), 50, (2, 29))


def embed(encoder, cache, index=0, change=lambda x: x):
    return encoder.embed(change(cache.images[index]), change(cache.brain_masks[index]))


def test_one_vector_per_scan_whatever_the_number_of_slices(encoder, cache):
    assert embed(encoder, cache).shape == (SLABS * 16,)
    assert torch.isfinite(embed(encoder, cache)).all()


def test_the_same_scan_always_gives_the_same_vector(encoder, cache):
    assert torch.equal(embed(encoder, cache), embed(encoder, cache))


def test_eight_bits_and_floats_give_the_same(encoder, cache):
    as_float = encoder.embed(cache.images[0].float() / 255, cache.brain_masks[0])
    torch.testing.assert_close(as_float, embed(encoder, cache))


def test_an_upside_down_brain_differs_more_than_another_person(encoder, cache):
    upright, other = embed(encoder, cache), embed(encoder, cache, 1)
    flipped = embed(encoder, cache, change=lambda x: x.flip(2))
    assert (flipped - upright).norm() > 2 * (other - upright).norm()


def test_a_slab_without_brain_is_zero_and_leaves_the_others_alone(encoder, cache):
    def without_top(volume):
        volume = volume.clone()
        volume[:, :, 23:] = 0
        return volume

    whole, cut = embed(encoder, cache), embed(encoder, cache, change=without_top)
    assert (cut[-16:] == 0).all()
    torch.testing.assert_close(cut[:-16], whole[:-16])


def test_what_lies_in_a_slice_without_brain_does_not_count(encoder, cache):
    image = cache.images[0].clone()
    empty = cache.brain_masks[0].sum(dim=(0, 1)) == 0
    image[:, :, empty] = 200
    assert torch.equal(encoder.embed(image, cache.brain_masks[0]), embed(encoder, cache))


def test_no_hook_stays_on_the_network(cache):
    network = ddpm.build(TINY["ddpm"]).eval()
    BrainEncoder(network, 50, (2, 29)).embed(cache.images[0], cache.brain_masks[0])
    assert not network.unet.middle_block._forward_hooks


def test_an_empty_brain_mask_is_refused(encoder, cache):
    with pytest.raises(InvalidSettings, match="empty brain mask"):
        encoder.embed(cache.images[0], torch.zeros_like(cache.brain_masks[0]))


def test_another_kind_of_network_is_refused():
    with pytest.raises(InvalidSettings, match="ddpm"):
        BrainEncoder(torch.nn.Linear(1, 1), 50, (0, 1))
