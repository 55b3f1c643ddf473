"""Latent diffusion with healing: its two stages, its latents' scale, and what healing may change."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.methods import latent_ddpm
from monailabel_app.methods.latent_ddpm import Config
from monailabel_app.methods.latent_diffusion import LatentDiffusion
from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.vq_vae import VqVaeConfig

SMALL = Config(
    vq=VqVaeConfig(channels=(8, 16), code_dim=4, num_codes=16),
    denoiser=DenoiserConfig(
        channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4, block_size=1
    ),
    first_stage=0.5,
    kl_steps=3,
    heal_steps=3,
    healthy_slices=40,
    grid=(8, 10, 4),
)
SHAPE = (32, 40, 12)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """An image (X, Y, Z) with texture in an ellipsoid, and the ellipsoid."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    mask = sum(axis**2 for axis in axes) < 0.8
    texture = 0.5 + 0.2 * torch.sin(8 * axes[0]) * torch.cos(7 * axes[1])
    return torch.where(mask, texture, 0.0), mask


def batch() -> torch.Tensor:
    image, _ = brain()
    return image[..., 2:10].movedim(2, 0)[:, None]


@pytest.fixture(scope="module")
def trained():
    """Both stages, some steps each."""
    torch.manual_seed(0)
    config = replace(SMALL, first_stage=0.8)
    model = latent_ddpm.build(config)
    optimizer, steps = torch.optim.AdamW(model.parameters(), lr=3e-3), 130
    for step in range(steps):
        latent_ddpm.begin_step(model, config, step / steps)
        optimizer.zero_grad(set_to_none=True)
        latent_ddpm.training_loss(model, config, batch(), seeded(step)).backward()
        optimizer.step()
    return model.eval()


def test_stages_follow_the_share_of_the_training():
    model = latent_ddpm.build(SMALL)
    seen = []
    for share in (0.0, 0.4, 0.6, 0.9, 0.0):
        latent_ddpm.begin_step(model, SMALL, share)
        seen.append(float(model.stage))
    assert seen == [0, 0, 1, 1, 0]


def test_the_first_stage_trains_the_autoencoder_and_the_second_leaves_the_latents_as_they_are():
    model = latent_ddpm.build(SMALL)

    def trained_by(share):
        model.zero_grad(set_to_none=True)
        latent_ddpm.begin_step(model, SMALL, share)
        latent_ddpm.training_loss(model, SMALL, batch(), seeded()).backward()
        parts = [name.removeprefix("vq.").split(".")[0] for name, p in model.named_parameters() if p.grad is not None]
        return set(parts)

    assert trained_by(0.1) == {"encoder", "decoder"}
    codes = model.vq.quantizer.codes.clone()
    assert trained_by(0.9) == {"denoiser", "decoder"}
    assert torch.equal(model.vq.quantizer.codes, codes)


def test_validation_changes_no_buffer(trained):
    for share in (0.1, 0.9):
        model = latent_ddpm.build(SMALL).eval()
        latent_ddpm.begin_step(model, SMALL, share)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.inference_mode():
            latent_ddpm.training_loss(model, SMALL, batch(), seeded())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_autoencoder_learns_without_collapse(trained):
    tokens = trained.vq.quantizer.tokens(trained.vq.encoder(batch()))
    assert trained.vq.quantizer.perplexity(tokens).item() > 4
    with torch.no_grad():
        made = trained.vq.decode(trained.vq.quantized(batch()))
    assert (made - batch()).abs().mean() < 0.5 * batch().mean()


def test_scaled_latents_have_zero_mean_and_unit_deviation(trained):
    codes = trained.vq.quantized(batch())
    latents = trained.latents(codes)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)
    torch.testing.assert_close(trained.codes(latents), codes)


def test_the_scale_is_fixed_after_the_first_batches_of_the_second_stage(trained, monkeypatch):
    monkeypatch.setattr(latent_ddpm, "_SCALE_BATCHES", 2)
    model = latent_ddpm.build(SMALL)
    latent_ddpm.begin_step(model, SMALL, 0.9)
    first, second = torch.randn(2, 4, 5, 5, generator=seeded()), 2 + torch.randn(2, 4, 5, 5, generator=seeded(1))
    model.measure(first)
    model.measure(second)
    both = torch.cat([first, second])
    torch.testing.assert_close(model.latent_mean, both.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.latent_std, both.std(dim=(0, 2, 3), correction=0))
    model.measure(second + 5)
    torch.testing.assert_close(model.latent_mean, both.mean(dim=(0, 2, 3)))


def test_healing_changes_the_image_only_around_the_healed_region():
    model = latent_ddpm.build(SMALL).eval()
    model.vq.quantizer.codes.normal_(generator=seeded())
    codes = model.vq.nearest(torch.randn(2, 4, 18, 24, generator=seeded(1)))
    region = torch.zeros(2, 1, 18, 24, dtype=torch.bool)
    region[0, 0, 8:10, 11:13] = True
    with torch.inference_mode():
        plain = model.vq.decode(codes).clamp(0, 1)
        healed = latent_ddpm._heal(model, SMALL, codes, region, seeded())
    assert torch.equal(healed[1], plain[1])
    changed = torch.nonzero((healed[0, 0] - plain[0, 0]).abs() > 1e-6)
    assert len(changed)
    assert (changed[:, 0] - 4 * 9).abs().max() <= 28
    assert (changed[:, 1] - 4 * 12).abs().max() <= 28


def test_healed_latents_are_made_of_codes_and_the_region_may_be_widened(monkeypatch):
    model = latent_ddpm.build(SMALL).eval()
    model.vq.quantizer.codes.normal_(generator=seeded())
    codes = model.vq.nearest(torch.randn(1, 4, 18, 24, generator=seeded(1)))
    region = torch.zeros(1, 1, 18, 24, dtype=torch.bool)
    region[0, 0, 9, 12] = True
    decoded = []
    monkeypatch.setattr(model.vq, "decode", lambda values: decoded.append(values) or values[:, :1])
    with torch.inference_mode():
        latent_ddpm._heal(model, replace(SMALL, grow=2), codes, region, seeded())
    assert torch.equal(model.vq.nearest(decoded[0]), decoded[0])
    changed = torch.nonzero((decoded[0] != codes).any(dim=1)[0])
    assert 5 < len(changed) <= 25
    assert (changed - torch.tensor([9, 12])).abs().max() == 2


def test_finish_learns_the_usual_likelihood_from_healthy_brains(trained):
    image, mask = brain()
    images = (torch.stack([image] * 4) * 255).to(torch.uint8)
    latent_ddpm.finish(trained, SMALL, images, torch.stack([mask] * 4), seeded())
    assert trained.locations.known == 1
    assert trained.locations.limit > 0
    found = latent_ddpm.analyse(trained, SMALL, image, mask, seeded(1))
    assert abs(found.figures["mean_likelihood_deviation"]) < 1


def test_a_lesion_is_marked_and_healed_by_a_network_that_knows_the_healthy_brain(trained, monkeypatch):
    image, mask = (values[..., 6:7].expand(SHAPE).contiguous() for values in brain())
    lesion = torch.zeros_like(mask)
    lesion[12:20, 16:24, 4:8] = True
    with torch.inference_mode():
        healthy = trained.latents(trained.vq.quantized(image.movedim(2, 0)[:1, None]))
    engine = LatentDiffusion(SMALL.diffusion)

    def knowing(noisy, timesteps):
        signal = engine.level(int(timesteps[0]))
        sigma = (1 - signal**2) ** 0.5
        return signal * (noisy - signal * healthy) / sigma - sigma * healthy

    monkeypatch.setattr(trained.denoiser, "forward", knowing)
    # What is usual where plays no part here.
    unlearnt = latent_ddpm.LocationStatistics(SMALL.grid)
    monkeypatch.setitem(trained._modules, "locations", unlearnt)
    lesioned, seen = torch.where(lesion, 1.0, image), []
    found = latent_ddpm.analyse(trained, SMALL, lesioned, mask, seeded(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert set(found.maps) == {"kl", "healed", "healed_signed", "healed_brighter"}
    for values in (found.reconstruction, *found.maps.values()):
        assert values.shape == SHAPE
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
    for values in found.maps.values():
        assert (values[~mask] == 0).all()
    assert torch.equal(found.maps["healed"], found.maps["healed_signed"].abs())
    for name in ("kl", "healed", "healed_brighter"):
        assert found.maps[name][lesion].mean() > 3 * found.maps[name][mask & ~lesion].abs().mean()
    assert (found.reconstruction - lesioned)[lesion].mean() < -0.1


def test_the_residual_vanishes_far_from_the_healed_region(trained):
    image, mask = brain()
    trained.locations.known.fill_(1.0)
    trained.locations.limit.fill_(1e9)
    found = latent_ddpm.analyse(trained, SMALL, image, mask, seeded())
    assert all((found.maps[name] == 0).all() for name in ("healed", "healed_signed"))
    assert found.reconstruction[mask].std() > 0


def test_slices_without_brain_cost_nothing(trained, monkeypatch):
    image, mask = brain()
    image[..., 1:] = 0
    image[..., 0] = brain()[0][..., 6]
    seen = []
    original = trained.denoiser.forward
    monkeypatch.setattr(trained.denoiser, "forward", lambda x, t: seen.append(len(x)) or original(x, t))
    latent_ddpm.analyse(trained, SMALL, image, image > 0, seeded())
    assert set(seen) == {1}
    empty = latent_ddpm.analyse(trained, SMALL, 0 * image, mask, seeded())
    assert (empty.reconstruction == 0).all()


def test_the_adversarial_term_gives_each_side_its_own_gradient():
    config = replace(SMALL, adversarial=0.1)
    model = latent_ddpm.build(config)
    made = torch.rand(2, 1, 32, 40, generator=seeded(), requires_grad=True)
    real = torch.rand(2, 1, 32, 40, generator=seeded(1))
    latent_ddpm._adversarial(model.discriminator, made, real).backward()
    by_sum = [p.grad.clone() for p in model.discriminator.parameters()]
    assert made.grad.abs().max() > 0
    model.zero_grad()
    judge = model.discriminator
    told = (judge(real)[-1] - 1).square().mean() + judge(made.detach())[-1].square().mean()
    (told / 2).backward()
    for found, parameter in zip(by_sum, model.discriminator.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)
    latent_ddpm.training_loss(model, config, batch(), seeded()).backward()


def test_the_shipped_size_stays_small():
    model = latent_ddpm.build(latent_ddpm.PRESETS["compact"])
    assert sum(value.numel() for value in model.parameters()) < 1.5e6
