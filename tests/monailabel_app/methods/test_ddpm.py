"""Diffusion of whole slices: the analysis is the mean of the engine's sweep."""

from dataclasses import replace

import torch

from monailabel_app.methods import ddpm
from monailabel_app.methods.diffusion import DiffusionEngine

CONFIG = replace(ddpm.TINY, levels=(0.9, 0.6), draws=2)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image() -> torch.Tensor:
    made = torch.zeros(16, 24, 5)
    made[2:-2, 2:-2, 1:4] = 0.2 + 0.6 * torch.rand(12, 20, 3, generator=seeded(1))
    return made


def network(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return torch.tanh(noisy) * (1 - timesteps.reshape(-1, 1, 1, 1) / 2000)


def test_the_reconstruction_is_the_mean_of_the_sweep_to_the_last_bit():
    """Noise is drawn in the order of the sweep: models keep their calibration."""
    brain = image()
    output = ddpm.analyse(network, CONFIG, brain, brain > 0, seeded(3))
    slices = brain[:, :, 1:4].permute(2, 0, 1)[:, None]
    engine = DiffusionEngine(CONFIG.diffusion)
    total = torch.zeros_like(slices)
    for _, _, made in engine.t_sweep(network, slices, CONFIG.levels, CONFIG.draws, seeded(3)):
        total += made
    assert torch.equal(output.reconstruction[:, :, 1:4], (total / 4)[:, 0].permute(1, 2, 0))


def test_shared_noise_gives_equal_slices_equal_reconstructions():
    same = image()[:, :, 1:2].expand(-1, -1, 4).contiguous()
    shared = ddpm.analyse(network, replace(CONFIG, shared_noise=True), same, same > 0, seeded()).reconstruction
    own = ddpm.analyse(network, CONFIG, same, same > 0, seeded()).reconstruction
    assert torch.equal(shared[:, :, 0], shared[:, :, 3])
    assert not torch.equal(own[:, :, 0], own[:, :, 3])


def test_one_pass_has_no_variance():
    brain = image()
    output = ddpm.analyse(network, ddpm.light(replace(CONFIG, levels=(0.9,))), brain, brain > 0, seeded())
    assert output.variance is None
    assert torch.equal(output.draws[0], output.reconstruction)
