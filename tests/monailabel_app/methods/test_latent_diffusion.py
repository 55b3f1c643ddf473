"""Diffusion on latents: its likelihood against MONAI's, and inpainting that leaves the rest as it is."""

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDPMScheduler

from monailabel_app.methods.diffusion import DiffusionConfig
from monailabel_app.methods.latent_diffusion import LatentDiffusion


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def engine(**changes) -> LatentDiffusion:
    settings = {"noise": "gaussian", "prediction": "epsilon", "schedule": "scaled_linear_beta", "loss": "l2", **changes}
    return LatentDiffusion(DiffusionConfig(**settings))


def latents(*shape) -> torch.Tensor:
    """Far outside of [-1, 1]."""
    return 3 * torch.randn(*shape, generator=seeded(9))


def network(x, timesteps=None, context=None):
    """Some smooth function of both arguments."""
    at = timesteps.reshape(-1, *([1] * (x.ndim - 1))).float() / 1000
    return torch.tanh(x) * (1 - at) + 0.1 * x


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_likelihood_term_of_every_step_is_that_of_monai(prediction):
    maker, clean = engine(prediction=prediction), latents(2, 3, 6, 8)
    steps = [5, 120, 400, 600, 990]
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, schedule="scaled_linear_beta", prediction_type=prediction, clip_sample=False
    )
    scheduler.timesteps = torch.tensor(steps)
    torch.manual_seed(1)
    noise = torch.randn_like(clean)
    torch.manual_seed(1)
    _, expected = DiffusionInferer(scheduler).get_likelihood(
        inputs=clean, diffusion_model=network, save_intermediates=True, verbose=False
    )
    for step, term in zip(steps, expected, strict=True):
        t = torch.full((2,), step)
        estimate = maker.clean_estimate(network, maker.add_noise(clean, t, noise), t)
        ours = maker.likelihood_weight(step) * (clean - estimate) ** 2
        torch.testing.assert_close(ours, term, rtol=5e-3, atol=5e-5)


def test_clipping_would_change_the_likelihood():
    maker, clean = engine(), latents(1, 2, 6, 8)
    t = torch.tensor([400])
    estimate = maker.clean_estimate(lambda x, t: torch.zeros_like(x), maker.add_noise(clean, t, 0 * clean), t)
    torch.testing.assert_close(estimate, clean, atol=1e-4, rtol=1e-4)
    assert estimate.abs().max() > 2


def test_the_map_is_the_mean_over_steps_and_channels():
    maker, clean = engine(prediction="sample"), latents(1, 4, 6, 8)
    guess = clean + torch.tensor([1.0, 2.0, 0.0, 0.0])[:, None, None]
    found = maker.likelihood_map(lambda x, t: guess, clean, [300, 500], seeded())
    weight = (maker.likelihood_weight(300) + maker.likelihood_weight(500)) / 2
    torch.testing.assert_close(found, torch.full((1, 6, 8), weight * 5 / 4), rtol=1e-4, atol=0)


def test_noise_levels_of_the_map_are_equally_spaced_steps_of_the_range():
    maker = engine()
    steps = maker.spaced_steps((0.25, 0.6), 12)
    assert len(steps) == 12
    assert maker.level(steps[0]) == pytest.approx(0.6, abs=0.01)
    assert maker.level(steps[-1]) == pytest.approx(0.25, abs=0.01)
    gaps = torch.tensor(steps).diff()
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (1, 3, 4, 6, 4)])
def test_inpainting_leaves_the_other_latents_exactly_as_they_were(shape):
    maker, clean = engine(prediction="v_prediction"), latents(*shape)
    replaced = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    replaced[:, :, 1:3, 2:4] = True
    drawn = maker.inpaint(network, clean, replaced, 0.2, 10, seeded())
    everywhere = replaced.expand(shape)
    assert torch.equal(drawn[~everywhere], clean[~everywhere])
    assert (drawn - clean)[everywhere].abs().min() > 0


def test_inpainting_sees_the_surroundings_at_every_noise_level():
    maker, clean = engine(prediction="sample"), latents(1, 2, 6, 8)
    replaced = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    replaced[:, :, 2:4, 3:5] = True
    outside = ~replaced.expand_as(clean)
    errors = []

    def healthy(x, t):
        signal = maker.level(int(t[0]))
        noise = (x - signal * clean)[outside] / (1 - signal**2) ** 0.5
        errors.append((float(noise.mean()), float(noise.std())))
        return torch.zeros_like(x)

    drawn = maker.inpaint(healthy, clean, replaced, 0.2, 8, seeded())
    assert len(errors) == 8
    assert all(abs(mean) < 0.5 and 0.7 < std < 1.3 for mean, std in errors)
    assert (drawn[~outside] == 0).all()


def test_the_training_loss_of_a_perfect_network_is_zero_for_latents_of_any_range():
    maker, clean = engine(prediction="sample"), latents(4, 3, 6, 8)
    assert maker.latent_loss(lambda x, t: clean, clean, seeded()) < 1e-9
    assert maker.latent_loss(lambda x, t: clean.clamp(-1, 1), clean, seeded()) > 1
