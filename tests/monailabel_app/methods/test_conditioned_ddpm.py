"""Conditioned diffusion: what the encoder tells of the clean slice changes what the denoiser draws."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.methods import conditioned_ddpm
from monailabel_app.methods.conditioned_ddpm import Config
from monailabel_app.methods.diffusion import DiffusionConfig
from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.slice_encoder import EncoderConfig

SMALL = Config(
    denoiser=DenoiserConfig(channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4),
    encoder=EncoderConfig(channels=(8, 8), blocks=(1, 1), features=6, norm_groups=4),
    diffusion=DiffusionConfig(noise="gaussian", train_levels=(0.1, 0.3)),
    levels=(0.2,),
    draws=2,
)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(config=SMALL, seed=0):
    """A network whose last layers, which start at zero, do something."""
    torch.manual_seed(seed)
    model = conditioned_ddpm.build(config).eval()
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def flat_slices(count: int, generator: torch.Generator) -> torch.Tensor:
    """Each of one grey value."""
    return torch.rand(count, 1, 1, 1, generator=generator).expand(count, 1, 8, 16).contiguous()


def test_noise_alone_gives_another_picture_for_another_slice():
    model, noise = network(), torch.randn(2, 1, 8, 16, generator=seeded())
    noisy = noise[:1].expand(2, -1, -1, -1)
    clean = torch.rand(2, 1, 8, 16, generator=seeded(1))
    with torch.no_grad():
        made = model(noisy, torch.tensor([500, 500]), clean=clean)
    assert (made[0] - made[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["encoder.body.0.weight", "encoder.features.weight", "unet.time_embed.0.weight"])
def test_the_loss_reaches_the_encoder_through_every_block(name):
    model = network()
    conditioned_ddpm.training_loss(model, SMALL, torch.rand(2, 1, 8, 16, generator=seeded()), seeded()).backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    assert gradients[name].abs().max() > 0
    features = SMALL.encoder.features
    projections = [key for key in gradients if key.endswith("time_emb_proj.weight")]
    assert len(projections) >= 8
    for key in projections:
        assert gradients[key][:, -features:].abs().max() > 0, key


def test_training_teaches_what_only_the_condition_can_tell():
    """From nearly pure noise a slice's grey value cannot be read; its features carry it."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = seeded()
    for _ in range(60):
        loss = conditioned_ddpm.training_loss(model, SMALL, flat_slices(16, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = flat_slices(32, seeded(9))
    with torch.no_grad():
        own = conditioned_ddpm.training_loss(model, SMALL, batch, seeded(2))
        encode = model.encode
        model.encode = lambda clean: encode(clean.roll(1, dims=0))
        other = conditioned_ddpm.training_loss(model, SMALL, batch, seeded(2))
    assert own < 0.6 * other


def test_the_encoder_runs_once_per_slice_however_many_draws():
    model, calls = network(), []
    encode = model.encode
    model.encode = lambda clean: calls.append(len(clean)) or encode(clean)
    image = torch.zeros(8, 16, 5)
    image[1:-1, 1:-1, 1:4] = 0.5
    config = replace(SMALL, draws=3)
    output = conditioned_ddpm.analyse(model, config, image, image > 0, seeded(), batch_size=2)
    assert calls == [2, 1]
    assert len(output.draws) == 3
    assert output.variance is not None


def test_a_test_slice_is_drawn_from_its_own_features():
    """Slices in one batch do not mix: alone or with others, a slice's features are the same."""
    model, batch = network(), torch.rand(3, 1, 8, 16, generator=seeded())
    with torch.no_grad():
        together, alone = model.encode(batch), torch.cat([model.encode(one[None]) for one in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-4
