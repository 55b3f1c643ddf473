"""PLMS chains: exact for a perfect prediction, independent of each other, without memory."""

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods.plms import ChainSchedule, plms_chains

SCHEDULE = ChainSchedule(num_inference_steps=20)
CLEAN = torch.randn(1, 2, 3, 4, 3, generator=torch.Generator().manual_seed(5))


def noised(start, seed=0):
    a = SCHEDULE.signal()[start]
    noise = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(seed))
    return a * CLEAN + (1 - a**2).sqrt() * noise


def oracle(samples, times):
    """The noise in samples of CLEAN."""
    a = SCHEDULE.signal()[times].reshape(-1, 1, 1, 1, 1)
    return (samples - a * CLEAN) / (1 - a**2).sqrt()


def drifting(samples, times):
    """A prediction that depends on the sample and the step without being right."""
    return 0.5 * torch.tanh(samples) + 0.001 * times.reshape(-1, 1, 1, 1, 1)


def test_the_signal_is_that_of_monai_s_schedule():
    scheduler = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    torch.testing.assert_close(SCHEDULE.signal(), scheduler.alphas_cumprod.sqrt(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0.97, 0.7, 0.2])
def test_a_perfect_prediction_leads_back_to_the_clean_sample(level):
    start = SCHEDULE.start(level)
    (end,) = plms_chains(oracle, [noised(start)], [start], SCHEDULE)
    torch.testing.assert_close(end, CLEAN, atol=2e-3, rtol=0)


def test_the_network_is_asked_at_the_noise_level_that_the_sample_has():
    start, asked = SCHEDULE.start(0.5), []

    def watching(samples, times):
        a = SCHEDULE.signal()[times]
        # With the true noise the sample is a * CLEAN + s * noise: its distance to CLEAN tells a.
        asked.append(float((samples - a.reshape(-1, 1, 1, 1, 1) * CLEAN).std() / (1 - a**2).sqrt()))
        return oracle(samples, times)

    plms_chains(watching, [noised(start)], [start], SCHEDULE)
    assert max(asked) / min(asked) < 1.01


def test_chains_side_by_side_give_what_each_gives_alone_and_again():
    starts = [SCHEDULE.start(level) for level in (0.9, 0.6, 0.3)]
    samples = [noised(start, seed) for seed, start in enumerate(starts)]
    together = plms_chains(drifting, samples, starts, SCHEDULE)
    again = plms_chains(drifting, samples, starts, SCHEDULE)
    for sample, start, end, repeated in zip(samples, starts, together, again, strict=True):
        (alone,) = plms_chains(drifting, [sample], [start], SCHEDULE)
        torch.testing.assert_close(end, alone)
        torch.testing.assert_close(end, repeated, atol=0, rtol=0)


def test_finished_chains_cost_nothing():
    sizes = []

    def counting(samples, times):
        sizes.append(len(samples))
        return drifting(samples, times)

    starts = [SCHEDULE.start(0.95), SCHEDULE.start(0.3)]
    plms_chains(counting, [noised(start) for start in starts], starts, SCHEDULE)
    stride = SCHEDULE.num_train_timesteps // SCHEDULE.num_inference_steps
    assert sum(sizes) == sum(start // stride + 2 for start in starts)
    assert sizes[0] == 2
    assert sizes[-1] == 1


@pytest.mark.parametrize("level", [0.0, 1.0, 40])
def test_levels_that_are_none_are_refused(level):
    with pytest.raises(InvalidSettings, match="between 0 and 1"):
        SCHEDULE.start(level)
