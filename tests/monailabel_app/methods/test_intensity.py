"""Intensity maps depend on the scan alone: ranks and z-scores within its brain."""

import numpy as np
import torch

from monailabel_app.methods import intensity
from tests.monailabel_app.synthetic import random_cache

CONFIG = intensity.Config()


def brain(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(12, 14, 10, generator=generator) ** 2
    mask = torch.zeros(12, 14, 10, dtype=torch.bool)
    mask[2:10, 3:12, 1:9] = True
    return torch.where(mask, image, 0.0), mask


def test_equalised_intensity_is_uniform_whatever_the_scan_s_histogram():
    image, mask = brain()
    made = intensity.equalize(image, mask)
    quantiles = torch.quantile(made[mask], torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(quantiles, torch.linspace(0.1, 0.9, 9), atol=0.02, rtol=0)
    assert (made[~mask] == 0).all()


def test_equalisation_keeps_the_order_and_forgets_a_monotone_change_of_contrast():
    image, mask = brain()
    one, other = (intensity.equalize(values, mask, bins=65536) for values in (image, image.sqrt()))
    order = image[mask].argsort()
    assert (one[mask][order].diff() >= -1e-6).all()  # rounding
    torch.testing.assert_close(one, other, atol=0.01, rtol=0)


def test_the_z_scores_forget_gain_and_offset():
    image, mask = brain()
    torch.testing.assert_close(
        intensity.z_score(image, mask), intensity.z_score(0.4 * image + 0.3, mask), atol=1e-4, rtol=1e-4
    )


def test_the_z_map_is_the_z_score_within_the_brain():
    prepared = random_cache(1).prepared(0)
    image, mask = torch.from_numpy(prepared.image[0]), torch.from_numpy(prepared.brain_mask)
    made = intensity.analyse(intensity.build(CONFIG), CONFIG, image, mask, torch.Generator()).maps
    inside = prepared.image[0][prepared.brain_mask]
    expected = np.where(prepared.brain_mask, (prepared.image[0] - inside.mean()) / inside.std(), 0.0)
    np.testing.assert_allclose(made["intensity_z"].numpy(), expected, atol=1e-4)


def test_an_even_brain_and_an_empty_one_have_no_anomaly():
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    for image, inside in ((torch.full((4, 4, 4), 0.5), mask), (torch.zeros(4, 4, 4), ~mask)):
        made = intensity.analyse(intensity.build(CONFIG), CONFIG, image, inside, torch.Generator()).maps
        assert all((values == 0).all() for values in made.values())
