"""The trunk of a residual network: torchvision's names, one resolution, the same in every mode, frozen for good."""

import pytest
import torch
from torch import nn

from monailabel_app.networks.resnet_trunk import RESNET18, FixedNorm, ResNetTrunk, TrunkConfig, frozen

SMALL = TrunkConfig(width=8, kernel=3)


def _slices(n=2):
    return torch.rand(n, 1, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_names_and_shapes_are_those_of_torchvision_s_resnet18():
    shapes = {name: tuple(value.shape) for name, value in ResNetTrunk(RESNET18).state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.1.conv2.weight"] == (64, 64, 3, 3)
    assert shapes["layer2.0.conv1.weight"] == (128, 64, 3, 3)
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    for norm, channels in (("bn1", 64), ("layer1.0.bn2", 64), ("layer2.0.downsample.1", 128)):
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert shapes[f"{norm}.{part}"] == (channels,)
    # conv1, bn1; two blocks of two convolutions with norms each; the same and a shortcut.
    assert len(shapes) == 5 + 2 * 10 + 2 * 10 + 5


@pytest.mark.parametrize(("config", "size"), [(SMALL, (12, 16)), (RESNET18, (12, 16))])
def test_features_of_three_depths_come_at_half_the_resolution(config, size):
    assert ResNetTrunk(config)(_slices()).shape == (2, config.channels, *size)


def test_a_fixed_norm_is_a_batch_norm_in_evaluation_mode():
    generator = torch.Generator().manual_seed(1)
    reference, ours = nn.BatchNorm2d(5).eval(), FixedNorm(5)
    values = {name: torch.rand(5, generator=generator) + 0.1 for name in ours.state_dict()}
    reference.load_state_dict(values, strict=False)
    ours.load_state_dict(values)
    x = torch.randn(3, 5, 4, 4, generator=generator)
    torch.testing.assert_close(ours.train()(x), reference(x))


def test_a_block_computes_what_residual_networks_compute():
    trunk, x = ResNetTrunk(RESNET18), torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(2))
    block = trunk.layer2[0]
    inside = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(inside + block.downsample[1](block.downsample[0](x))))


@pytest.mark.parametrize("config", [SMALL, RESNET18])
def test_features_are_the_same_in_training_and_evaluation_and_do_not_depend_on_the_batch(config):
    trunk, slices = frozen(ResNetTrunk(config)), _slices(3)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    trained = trunk.train()(slices)
    torch.testing.assert_close(trunk.eval()(slices), trained, atol=0, rtol=0)
    torch.testing.assert_close(trunk(slices[1:2]), trained[1:2], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_freezing_keeps_names_values_and_outputs_and_leaves_no_parameter():
    trunk, slices = ResNetTrunk(SMALL), _slices()
    before, made = trunk.state_dict(), trunk(slices)
    assert frozen(trunk) is trunk
    assert list(trunk.parameters()) == []
    after = trunk.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(trunk(slices), made)
