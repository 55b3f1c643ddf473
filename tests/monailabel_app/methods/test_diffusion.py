"""The diffusion engine against an oracle that knows the clean image."""

import numpy as np
import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods.diffusion import DiffusionConfig, DiffusionEngine

PREDICTIONS = ("sample", "epsilon", "v_prediction")


def engine(**changes) -> DiffusionEngine:
    return DiffusionEngine(DiffusionConfig(**changes))


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count=3, size=(16, 20)) -> torch.Tensor:
    return torch.rand(count, 1, *size, generator=seeded(7))


class Oracle:
    """A network that knows the clean image (in [-1, 1]) and answers what the prediction type asks for."""

    def __init__(self, maker: DiffusionEngine, clean: torch.Tensor) -> None:
        self.maker, self.clean, self.calls = maker, clean, []

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        self.calls.append(timesteps.tolist())
        signal = torch.tensor([self.maker.level(int(t)) for t in timesteps]).reshape(-1, 1, 1, 1)
        sigma = (1 - signal**2).sqrt()
        noise = (noisy - signal * self.clean) / sigma
        prediction = self.maker.config.prediction
        return {"sample": self.clean, "epsilon": noise, "v_prediction": signal * noise - sigma * self.clean}[prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
def test_the_clean_estimate_of_a_perfect_network_is_the_image(prediction, noise):
    maker = engine(prediction=prediction, noise=noise)
    clean = images() * 2 - 1
    steps = torch.tensor([30, 499, 800])
    noisy = maker.add_noise(clean, steps, maker.draw_noise(clean.shape, seeded(), "cpu"))
    assert (noisy - clean).abs().max() > 0.3
    torch.testing.assert_close(maker.clean_estimate(Oracle(maker, clean), noisy, steps), clean, atol=2e-4, rtol=0)


def test_cosine_levels_are_those_of_the_published_schedule():
    maker = engine(schedule="cosine")
    assert [round(maker.level(t), 2) for t in (249, 499, 749)] == [0.92, 0.70, 0.38]


def test_signal_and_noise_powers_add_up_to_one():
    maker = engine()
    ones, steps = torch.ones(1000, 1, 1, 1), torch.arange(1000)
    signal = maker.add_noise(ones, steps, torch.zeros_like(ones))
    noise = maker.add_noise(torch.zeros_like(ones), steps, ones)
    torch.testing.assert_close(signal**2 + noise**2, ones, atol=1e-5, rtol=0)
    assert (signal.flatten().diff() < 0).all()


@pytest.mark.parametrize("schedule", ["cosine", "linear_beta", "scaled_linear_beta"])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.7, 0.95])
def test_a_level_finds_the_nearest_step_of_every_schedule(schedule, level):
    maker = engine(schedule=schedule)
    found = maker.timestep(level)
    distances = [abs(maker.level(t) - level) for t in (found - 1, found, found + 1)]
    assert min(distances) == distances[1]
    assert distances[1] < 0.005


@pytest.mark.parametrize("level", [0.05, 0.98, float("nan")])
def test_a_level_outside_the_trained_range_is_refused(level):
    with pytest.raises(InvalidSettings, match=r"between 0\.1 and 0\.97"):
        engine(train_levels=(0.1, 0.97)).timestep(level)


def test_an_empty_training_range_is_refused():
    with pytest.raises(InvalidSettings, match="train_levels"):
        engine(train_levels=(0.9, 0.1))


def test_training_draws_steps_of_the_trained_range_only():
    maker = engine(train_levels=(0.4, 0.8), noise="gaussian", prediction="sample")
    oracle = Oracle(maker, torch.zeros(64, 1, 4, 4))
    maker.training_loss(oracle, torch.full((64, 1, 4, 4), 0.5), seeded())
    levels = [maker.level(t) for t in oracle.calls[0]]
    assert min(levels) >= 0.4
    assert max(levels) <= 0.8
    assert max(levels) - min(levels) > 0.3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_training_loss_is_lowest_for_a_perfect_network(prediction, loss):
    maker = engine(prediction=prediction, loss=loss, train_levels=(0.1, 0.97), noise="gaussian")
    batch = images(8)
    perfect = maker.training_loss(Oracle(maker, batch * 2 - 1), batch, seeded())
    ignorant = maker.training_loss(lambda noisy, t: torch.zeros_like(noisy), batch, seeded())
    assert torch.isfinite(ignorant)
    assert perfect < 1e-3
    assert ignorant > 0.1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_chain_step_is_the_one_step_estimate(prediction):
    maker = engine(prediction=prediction)
    noisy = maker.draw_noise((2, 1, 16, 16), seeded(), "cpu")

    def network(x, t):
        return 0.3 * x + t.reshape(-1, 1, 1, 1) / 5000

    start = maker.timestep(0.7)
    estimate = maker.clean_estimate(network, noisy, torch.full((2,), start))
    assert torch.equal(maker.chain(network, noisy, start, 1), estimate)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_the_chain_of_a_perfect_network_ends_at_the_image(prediction, steps):
    maker = engine(prediction=prediction)
    clean = images() * 2 - 1
    start = maker.timestep(0.5)
    noisy = maker.add_noise(clean, torch.full((3,), start), maker.draw_noise(clean.shape, seeded(), "cpu"))
    oracle = Oracle(maker, clean)
    torch.testing.assert_close(maker.chain(oracle, noisy, start, steps), clean, atol=1e-3, rtol=0)
    visited = [call[0] for call in oracle.calls]
    assert visited[0] == start
    assert len(visited) == steps
    assert sorted(visited, reverse=True) == visited


def test_between_its_steps_the_chain_keeps_the_noise_and_lowers_its_share():
    maker = engine(prediction="sample")
    clean = images() * 2 - 1
    start = maker.timestep(0.3)
    noise = maker.draw_noise(clean.shape, seeded(), "cpu")
    seen = []

    def network(x, t):
        expected = maker.add_noise(clean, t, noise)
        seen.append(float((x - expected).abs().max()))
        return clean

    maker.chain(network, maker.add_noise(clean, torch.full((3,), start), noise), start, 4)
    assert len(seen) == 4
    assert max(seen) < 1e-4


def test_a_chain_from_the_clean_end_is_refused():
    with pytest.raises(InvalidSettings, match="above 0"):
        engine().chain(lambda x, t: x, images(), 0, 1)


def test_the_clean_estimate_stays_in_the_range_of_images():
    maker = engine(prediction="epsilon")
    out = maker.clean_estimate(lambda x, t: -5 * torch.ones_like(x), images(1), torch.tensor([999]))
    assert out.abs().max() <= 1


@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
def test_a_sweep_gives_every_level_and_draw_with_noise_of_its_own(noise):
    maker = engine(noise=noise)

    def network(x, t):
        return x.clamp(-1, 1)

    def sweep(seed):
        return list(maker.t_sweep(network, images(), (0.9, 0.5), 3, seeded(seed)))

    first, again, other = sweep(1), sweep(1), sweep(2)
    assert [(level, draw) for level, draw, _ in first] == [(0.9, 0), (0.9, 1), (0.9, 2), (0.5, 0), (0.5, 1), (0.5, 2)]
    for (_, _, a), (_, _, b), (_, _, c) in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)
    assert not torch.allclose(first[0][2], first[1][2])


def test_slices_of_a_sweep_get_different_noise():
    maker = engine(noise="simplex")
    same = torch.full((2, 1, 16, 16), 0.5)
    (_, _, estimate), *_ = maker.t_sweep(lambda x, t: x.clamp(-1, 1), same, (0.7,), 1, seeded())
    assert not torch.allclose(estimate[0], estimate[1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_sweep_of_a_perfect_network_returns_the_image_in_its_own_range(prediction):
    maker = engine(prediction=prediction)
    batch = images()
    for _, _, estimate in maker.t_sweep(Oracle(maker, batch * 2 - 1), batch, (0.9, 0.6), 1, seeded(), chain_steps=3):
        torch.testing.assert_close(estimate, batch, atol=1e-3, rtol=0)


def test_the_likelihood_term_is_the_weighted_error_of_the_clean_estimate():
    """KL of the reverse step for the fixed small variance: (SNR(t-1) - SNR(t)) / 2 times the squared error."""
    maker = engine(schedule="linear_beta", prediction="sample", noise="gaussian")
    clean, step = images(1) * 2 - 1, 300
    guess = (clean + 0.1).clamp(-1, 1)
    noisy = maker.add_noise(clean, torch.tensor([step]), maker.draw_noise(clean.shape, seeded(), "cpu"))
    bar, before = (np.float64(maker.level(t)) ** 2 for t in (step, step - 1))
    alpha = bar / before
    variance = (1 - before) / (1 - bar) * (1 - alpha)

    def mean(x0):
        return (np.sqrt(before) * (1 - alpha) * x0 + np.sqrt(alpha) * (1 - before) * noisy) / (1 - bar)

    divergence = (mean(clean) - mean(guess)) ** 2 / (2 * variance)
    weight = 0.5 * (before / (1 - before) - bar / (1 - bar))
    estimate = maker.clean_estimate(lambda x, t: guess, noisy, torch.tensor([step]))
    torch.testing.assert_close(divergence, weight * (clean - estimate) ** 2, atol=1e-6, rtol=1e-3)
