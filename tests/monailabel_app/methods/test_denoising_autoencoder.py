"""The denoising autoencoder: coarse noise in the foreground, taken off again, and lesions with it."""

from dataclasses import replace

import torch

from monailabel_app.methods import denoising_autoencoder
from monailabel_app.networks.restoration_unet import RestorationConfig
from tests.monailabel_app.methods.test_cold_diffusion import seeded, slices, volume

CONFIG = denoising_autoencoder.Config(network=RestorationConfig(channels=(16, 32), norm_groups=4))


def test_the_noise_is_coarse_of_its_strength_and_only_in_the_brain():
    brains = slices(64)
    noise = denoising_autoencoder.coarse_noise(brains, CONFIG, seeded())
    assert torch.equal(noise, denoising_autoencoder.coarse_noise(brains, CONFIG, seeded()))
    assert (noise[brains == 0] == 0).all()
    inside = noise[brains > 0]
    # Between the nodes, interpolation averages.
    assert 0.1 < inside.std() < CONFIG.noise
    both = (brains[:, :, 1:] > 0) & (brains[:, :, :-1] > 0)
    jumps = (noise[:, :, 1:] - noise[:, :, :-1])[both]
    assert jumps.std() < 0.45 * inside.std()


def test_a_share_of_the_slices_stays_clean_when_asked():
    noise = denoising_autoencoder.coarse_noise(slices(200), replace(CONFIG, clean_share=0.5), seeded())
    clean = (noise.flatten(1).abs().amax(dim=1) == 0).float().mean()
    assert 0.35 < clean < 0.65


def test_a_trained_network_takes_blobs_off_and_uses_no_random_numbers():
    torch.manual_seed(0)
    model, generator = denoising_autoencoder.build(CONFIG), seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        optimizer.zero_grad()
        denoising_autoencoder.training_loss(model, CONFIG, slices(8), generator).backward()
        optimizer.step()
    image, mask = volume()
    x, y = torch.meshgrid(torch.arange(32.0) - 14, torch.arange(40.0) - 18, indexing="ij")
    blob = 0.3 * torch.exp(-(x**2 + y**2) / 18)[:, :, None] * mask
    made = [denoising_autoencoder.analyse(model.eval(), CONFIG, image + blob, mask, seeded(s)) for s in (1, 2)]
    assert torch.equal(made[0].reconstruction, made[1].reconstruction)
    core = blob > 0.15
    left = (made[0].reconstruction - image)[core].abs().mean()
    assert left < 0.5 * blob[core].mean()
