"""The restoring network: neutral at first, any even size, and told the time and the other hemisphere."""

import pytest
import torch

from monailabel_app.networks.restoration_unet import RestorationConfig, RestorationUnet


def network(**changes) -> RestorationUnet:
    torch.manual_seed(0)
    return RestorationUnet(RestorationConfig(channels=(8, 16, 24), norm_groups=4, **changes))


def stirred(model: RestorationUnet) -> RestorationUnet:
    """The zeros that training begins with replaced by noise."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("size", [(72, 96), (72, 80), (96, 80), (40, 24)])
@pytest.mark.parametrize("changes", [{}, {"mirror": True, "attention": True, "blocks": 2}, {"block_size": 1}])
def test_it_keeps_the_size_and_starts_at_zero(size, changes):
    out = network(outputs=3, **changes)(torch.rand(2, 1, *size), torch.tensor([0.1, 0.9]))
    assert out.shape == (2, 3, *size)
    assert (out == 0).all()


def test_the_time_changes_the_answer():
    model, slices = stirred(network()), torch.rand(1, 1, 24, 32)
    early, late = (model(slices, torch.tensor([time])) for time in (0.1, 0.9))
    assert not torch.allclose(early, late)


def test_only_with_its_mirror_image_or_attention_does_it_see_the_other_side():
    slices = torch.rand(1, 1, 96, 16)
    changed = slices.clone()
    changed[:, :, :4] += 1
    for changes, sees in (({}, False), ({"mirror": True}, True)):
        model = stirred(RestorationUnet(RestorationConfig(channels=(8,), norm_groups=8, **changes))).eval()
        # Group normalisation sees the whole slice: compare where it is left out.
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda values: values
        before, after = (model(seen, torch.zeros(1)) for seen in (slices, changed))
        assert (not torch.allclose(before[:, :, -6:], after[:, :, -6:], atol=1e-5)) == sees
