"""The modulated U-Net."""

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn

from monailabel_app.networks.conditioned_unet import ConditionedDenoiser, ModulatedBlock
from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.slice_encoder import EncoderConfig

ENCODER = EncoderConfig(channels=(8, 8), blocks=(1, 2), features=6, norm_groups=4)


def denoiser(**changes) -> ConditionedDenoiser:
    options = {"channels": (8, 16), "attention_levels": (False, False), "head_channels": 8, "norm_groups": 4}
    return ConditionedDenoiser(DenoiserConfig(**{**options, **changes}), ENCODER)


@pytest.mark.parametrize("updown", [False, True])
def test_every_residual_block_is_modulated(updown):
    model = denoiser(resblock_updown=updown)
    blocks = [module for module in model.unet.modules() if isinstance(module, DiffusionUNetResnetBlock)]
    assert len(blocks) >= 8
    assert all(isinstance(block, ModulatedBlock) for block in blocks)
    for block in blocks:
        assert block.time_emb_proj.in_features == 4 * 8 + ENCODER.features
        assert block.time_emb_proj.out_features == 2 * block.out_channels


@pytest.mark.parametrize(("updown", "block_size"), [(False, 2), (True, 1), (True, 2)])
def test_the_output_has_the_input_s_shape(updown, block_size):
    model = denoiser(resblock_updown=updown, block_size=block_size)
    images = torch.rand(2, 1, 16, 24)
    assert model(images, torch.tensor([3, 700]), clean=images).shape == images.shape


def test_a_block_scales_and_shifts_by_its_embedding():
    """With scale -1 nothing of the input passes the second normalisation, and the shift alone is left."""
    block = ModulatedBlock(DiffusionUNetResnetBlock(2, 8, 5, norm_num_groups=4), extra=3)
    nn.init.normal_(block.conv2.conv.weight)
    nn.init.zeros_(block.time_emb_proj.weight)
    with torch.no_grad():
        block.time_emb_proj.bias.copy_(torch.tensor([-1.0] * 8 + [2.0] * 8))
    x, embedding = torch.randn(1, 8, 4, 4), torch.randn(1, 8)
    expected = x + block.conv2(torch.nn.functional.silu(torch.full_like(x, 2.0)))
    torch.testing.assert_close(block(x, embedding), expected)


def test_the_features_do_not_depend_on_the_size_of_the_batch_or_on_training_mode():
    model = denoiser()
    images = torch.rand(3, 1, 16, 24)
    torch.testing.assert_close(model.train().encode(images)[:1], model.eval().encode(images[:1]), atol=1e-5, rtol=1e-4)


def test_the_output_layer_is_the_last_part_of_the_network():
    """A private training tunes the last layers only, which it finds by their place."""
    names = [name for name, _ in denoiser().named_parameters()]
    assert names[-1].startswith("unet.out.")
