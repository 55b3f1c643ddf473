"""What makes it that method: a frozen encoder that nothing moves, an autoencoder of its features, and SSIM of both."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.methods import feature_autoencoder as method
from monailabel_app.methods.feature_autoencoder import Autoencoder, AutoencoderConfig, Config
from monailabel_app.networks.resnet_trunk import TrunkConfig
from tests.monailabel_app.methods.test_feature_pretext import brains
from tests.monailabel_app.networks.test_resnet18_file import resnet18_state

SMALL = Config(trunk=TrunkConfig(width=8, kernel=3), autoencoder=AutoencoderConfig(widths=(16, 24)))


def built(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return method.build(config)


def trained(model, config, steps, *, share=lambda step: 0.0, optimizer=None):
    """Steps as the training loop makes them, weight decay included; the losses."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    generator, losses = torch.Generator().manual_seed(1), []
    model.train()
    for step in range(steps):
        method.begin_step(model, config, share(step))
        loss = method.training_loss(model, config, brains(4, seed=step), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def with_resnet18(config):
    model = built(config)
    model.take_encoder({k: v for k, v in resnet18_state().items() if k in model.extractor.state_dict()})
    return model


@pytest.mark.parametrize("encoder", ["self_supervised", "torchvision_resnet18"])
def test_training_leaves_the_frozen_encoder_bit_by_bit_and_features_do_not_depend_on_the_mode(encoder):
    config = replace(SMALL, encoder=encoder, pretext_share=0.5)
    model = with_resnet18(config) if encoder == "torchvision_resnet18" else built(config)
    if encoder == "self_supervised":
        trained(model, config, 2)
        method.begin_step(model, config, 0.5)
    before, slices = tensors(model.extractor), brains(3, seed=9)
    features = model.eval().features(slices)
    trained(model, config, 3, share=lambda step: 0.5 + step / 10)
    assert before
    assert set(before) == set(model.extractor.state_dict())
    for name, value in model.extractor.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model.train().features(slices), features)
    assert torch.equal(model.eval().features(slices), features)
    # Of one slice alone, too: no statistics of the batch come in.
    torch.testing.assert_close(model.train().features(slices[:1]), features[:1], atol=1e-5, rtol=1e-5)
    assert not any("extractor" in name for name, _ in model.named_parameters())


def test_the_run_s_first_part_trains_the_encoder_alone_and_the_rest_the_autoencoder_alone():
    config = replace(SMALL, pretext_share=0.5)
    model = built(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)

    def changed(steps, share):
        before = tensors(model)
        trained(model, config, steps, share=lambda step: share, optimizer=optimizer)
        now = model.state_dict()
        return {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}

    assert changed(2, 0.2) == {"trunk", "head"}
    assert int(model.stage) == 0
    assert changed(2, 0.5) == {"extractor", "stage", "autoencoder"}
    assert int(model.stage) == 1
    assert changed(1, 0.9) == {"autoencoder"}
    for name, value in model.extractor.state_dict().items():
        # Rounded as a model folder keeps it: the features that were trained on are those that are shipped.
        assert torch.equal(value, model.trunk.state_dict()[name].bfloat16().float()), name


def test_a_run_from_finished_weights_keeps_their_encoder():
    config = replace(SMALL, pretext_share=0.5)
    first = built(config)
    trained(first, config, 2, share=lambda step: 0.6)
    again = built(config, seed=3)
    again.load_state_dict(first.state_dict())
    before = tensors(again.extractor)
    trained(again, config, 2)
    assert all(torch.equal(value, before[name]) for name, value in again.extractor.state_dict().items())


def test_a_short_training_lowers_the_loss_and_a_lesion_stands_out_from_the_same_place_without_it():
    config = replace(SMALL, pretext_share=0.3)
    model = built(config)
    steps = 70
    losses = trained(model, config, steps, share=lambda step: step / steps)
    copying = losses[int(0.3 * steps) + 1 :]
    assert sum(copying[-5:]) < 0.8 * sum(copying[:5])
    model.eval()
    healthy = brains(1, seed=500)[0, 0][..., None]
    lesion = torch.zeros_like(healthy, dtype=torch.bool)
    lesion[12:19, 16:23] = True
    spoilt = torch.where(lesion, 0.95, healthy)
    mask, generator = healthy > 0, torch.Generator().manual_seed(0)
    first, second = (method.analyse(model, config, image, mask, generator) for image in (healthy, spoilt))
    before, after = (made.maps["feature_ssim"] for made in (first, second))
    assert after[lesion].mean() > before[lesion].mean() + 0.1
    rise = after - before
    assert rise[lesion].mean() > 3 * rise[mask & ~lesion].mean()
    assert second.figures["feature_ssim_top"] > first.figures["feature_ssim_top"]


def test_the_map_is_that_of_the_features_and_zero_outside_the_brain():
    model = built().eval()
    image = brains(5).squeeze(1).permute(1, 2, 0).contiguous()
    image[..., 3] = 0
    mask = image > 0
    seen = []
    made = method.analyse(model, SMALL, image, mask, torch.Generator(), batch_size=2, progress=seen.append)
    found = made.maps["feature_ssim"]
    assert made.reconstruction is None
    assert found.shape == image.shape
    assert found.dtype == torch.float32
    assert (found[~mask] == 0).all()
    assert (found[mask] > 0).all()
    assert found.max() <= 2
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    inside = found[mask].sort(descending=True).values
    assert made.figures["feature_ssim_top"] == pytest.approx(inside[: -(-len(inside) // 10)].mean().item(), rel=1e-5)


def test_three_planes_are_averaged_and_a_single_slice_has_only_its_own():
    model = built().eval()
    image = torch.rand(16, 24, 16, generator=torch.Generator().manual_seed(3)) * 0.9 + 0.1
    mask = torch.ones_like(image, dtype=torch.bool)

    def found(volume, *planes):
        config = replace(SMALL, planes=planes)
        return method.analyse(model, config, volume, torch.ones_like(volume, dtype=torch.bool), torch.Generator())

    maps = [found(image, plane).maps["feature_ssim"] for plane in ("axial", "coronal", "sagittal")]
    together = found(image, "axial", "coronal", "sagittal").maps["feature_ssim"]
    torch.testing.assert_close(together, sum(maps) / 3)
    assert not torch.equal(maps[0], maps[1])
    slab, single = image[..., :1], found(image[..., :1], "axial", "coronal")
    torch.testing.assert_close(single.maps["feature_ssim"], found(slab, "axial").maps["feature_ssim"])
    assert mask.all()


def test_an_empty_scan_has_an_empty_map():
    made = method.analyse(
        built().eval(), SMALL, torch.zeros(16, 16, 2), torch.zeros(16, 16, 2, dtype=torch.bool), torch.Generator()
    )
    assert made.maps["feature_ssim"].abs().sum() == 0
    assert made.figures["feature_ssim_top"] == 0


@pytest.mark.parametrize("size", [(36, 48), (9, 11)])
def test_the_autoencoder_gives_back_maps_of_the_size_that_came_in(size):
    torch.manual_seed(0)
    network = Autoencoder(6, AutoencoderConfig(widths=(8, 12, 16), kernel=5))
    features = torch.randn(2, 6, *size)
    assert network(features).shape == features.shape
    dropped = network(features, torch.Generator().manual_seed(0))
    assert torch.equal(dropped, network(features, torch.Generator().manual_seed(0)))
    assert not torch.equal(dropped, network(features))


def test_a_resnet18_must_be_brought_before_anything_is_trained_on_it():
    config = replace(SMALL, encoder="torchvision_resnet18")
    with pytest.raises(TrainingFailed, match=r"main\.py encoder"):
        method.begin_step(built(config), config, 0.0)
    model = built(config)
    with pytest.raises(TrainingFailed, match="ResNet-18"):
        model.take_encoder({"conv1.weight": torch.zeros(1)})
    assert int(model.stage) == 0


def test_the_shipped_size_is_small():
    assert sum(value.numel() for value in built(method.PRESETS["compact"]).state_dict().values()) <= 1.5e6


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InvalidSettings, match=r"self_supervised.*'vgg'"):
        method.build(replace(SMALL, encoder="vgg"))
    with pytest.raises(InvalidSettings, match="pretext_share"):
        method.build(replace(SMALL, pretext_share=1.0))
