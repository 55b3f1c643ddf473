"""Whole brains from many noise levels: two stages, distances per level, maps of the scan's size."""

import pytest
import torch

from monailabel_app.methods import latent_ddpm_3d as method
from tests.monailabel_app.whole_brains import batch, brain

CONFIG = method.TINY


@pytest.fixture(scope="module")
def trained():
    """A network that has seen four brains."""
    steps = 40
    torch.manual_seed(0)
    network, generator = method.build(CONFIG), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    for step in range(steps):
        method.begin_step(network, CONFIG, step / steps)
        optimizer.zero_grad(set_to_none=True)
        method.training_loss(network, CONFIG, batch(), generator).backward()
        optimizer.step()
    return network.eval()


def test_the_compact_model_has_at_most_one_and_a_half_million_weights():
    assert sum(weight.numel() for weight in method.build(method.COMPACT).state_dict().values()) <= 1_500_000


def test_first_the_autoencoder_learns_and_then_only_the_denoiser():
    torch.manual_seed(0)
    network, generator = method.build(CONFIG), torch.Generator().manual_seed(0)
    learning = {}
    for share in (0.0, CONFIG.autoencoder_share):
        method.begin_step(network, CONFIG, share)
        network.zero_grad(set_to_none=True)
        method.training_loss(network, CONFIG, batch(), generator).backward()
        learning[share] = {
            name.split(".")[0] for name, weight in network.named_parameters() if weight.grad is not None
        }
    assert learning[0.0] == {"autoencoder"}
    assert learning[CONFIG.autoencoder_share] == {"unet"}
    assert float(network.state_dict()["denoising"]) == 1  # a resumed run goes on with the denoiser


def test_distances_are_told_for_every_level_and_maps_cover_the_scan():
    network, (image, mask) = method.build(CONFIG).eval(), brain()
    output = method.analyse(network, CONFIG, image, mask, torch.Generator().manual_seed(0))
    assert set(output.figures) == {
        f"{kind}@{level:g}" for kind in ("mse", "perceptual") for level in CONFIG.levels
    }
    for values in (*output.maps.values(), output.variance, output.reconstruction):
        assert values.shape == image.shape
        assert (values[~mask] == 0).all()
    assert all(float(values.min()) >= 0 for values in output.maps.values())


def test_a_scan_unlike_the_training_is_further_from_its_reconstructions_at_every_level(trained):
    network, (image, mask) = trained, brain(1)
    strange = (1.8 * image).clamp(max=1)
    near, far = (
        method.analyse(network, CONFIG, scan, mask, torch.Generator().manual_seed(0)).figures
        for scan in (image, strange)
    )
    assert all(far[name] > 1.5 * near[name] for name in near if name.startswith("mse"))


def test_the_map_is_highest_where_the_scan_was_changed(trained):
    network, (image, mask) = trained, brain(1)
    changed = image.clone()
    changed[8:16, 8:16, 8:16] = 1.0
    output = method.analyse(network, CONFIG, changed, mask, torch.Generator().manual_seed(0))
    lesion = torch.zeros_like(mask)
    lesion[8:16, 8:16, 8:16] = True
    for name, values in output.maps.items():
        assert values[lesion].mean() > 1.3 * values[mask & ~lesion].mean(), name
    assert (changed - output.reconstruction)[lesion].mean() > 0.1


def test_levels_do_not_depend_on_each_other_s_chains():
    """The scheduler remembers its chain; a shared one would carry that over to the next level."""
    network, (image, mask) = method.build(CONFIG).eval(), brain()
    first, repeated = (
        method.analyse(network, CONFIG, image, mask, torch.Generator().manual_seed(3)).figures for _ in range(2)
    )
    assert first == repeated
    split = method.analyse(network, CONFIG, image, mask, torch.Generator().manual_seed(3), batch_size=1).figures
    assert all(abs(split[name] - value) < 1e-3 * abs(value) + 1e-6 for name, value in first.items())


def test_the_light_configuration_has_fewer_levels():
    assert len(method.light(method.COMPACT).levels) < len(method.COMPACT.levels)
