"""Structural similarity of features against MONAI's, and the equalisation of slices."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from monailabel_app.methods.feature_ssim import RADIUS, equalized, feature_ssim


def _features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mix", [0.0, 0.5, 0.95])
def test_every_position_agrees_with_an_independent_implementation(mix):
    first = _features(0, 3, 4, 12, 15) * 2 + 1
    second = mix * first + (1 - mix) * _features(1, 3, 4, 12, 15)
    wanted = []
    for c in range(4):
        similarity, _ = compute_ssim_and_cs(
            first[:, [c]], second[:, [c]], 2, (5, 5), (1.5, 1.5), data_range=1.0, k1=0.01, k2=0.03
        )
        wanted.append(similarity)
    inside = slice(RADIUS, -RADIUS)
    made = feature_ssim(first, second)[..., inside, inside]
    torch.testing.assert_close(made, torch.cat(wanted, dim=1), atol=1e-3, rtol=1e-3)


def test_the_border_is_that_of_a_reflected_slice():
    first, second = _features(2, 1, 2, 9, 10), _features(3, 1, 2, 9, 10)
    padded = [torch.nn.functional.pad(x, (4, 4, 4, 4), mode="reflect") for x in (first, second)]
    torch.testing.assert_close(feature_ssim(*padded)[..., 4:-4, 4:-4], feature_ssim(first, second), atol=1e-4, rtol=0)


def test_equal_features_are_wholly_similar_and_inverted_ones_dissimilar():
    features = _features(4, 2, 3, 8, 8)
    torch.testing.assert_close(feature_ssim(features, features), torch.ones(2, 3, 8, 8), atol=1e-4, rtol=0)
    # The same mean, the opposite structure.
    assert feature_ssim(5 + features, 5 - features).mean() < -0.5


def test_large_batches_in_pieces_give_the_same_and_autocast_changes_nothing():
    first, second = _features(5, 40, 16, 24, 24), _features(6, 40, 16, 24, 24)
    whole = feature_ssim(first, second)
    torch.testing.assert_close(whole[7:9], feature_ssim(first[7:9], second[7:9]), atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(feature_ssim(first[:2], second[:2]), whole[:2], atol=1e-5, rtol=1e-5)


def test_equalisation_gives_ranks_inside_the_brain_whatever_the_scanner_s_gamma():
    slices = torch.randint(1, 256, (2, 1, 16, 24), generator=torch.Generator().manual_seed(7)) / 255
    slices[:, :, :4] = 0
    made = equalized(slices)
    assert (made[slices == 0] == 0).all()
    inside = np.sort(made[0][slices[0] > 0].numpy())
    np.testing.assert_allclose(inside, np.linspace(0, 1, len(inside)), atol=0.02)
    # Gamma keeps the order; the 256 bins merge few of the values.
    changed = equalized(slices**0.8)
    assert float((changed - made).abs().max()) < 0.02
    flat, bright = slices.flatten(1), made.flatten(1)
    assert (bright.gather(1, flat.argsort(1)).diff(dim=1) >= 0).all()


def test_an_empty_slice_stays_empty():
    assert equalized(torch.zeros(1, 1, 8, 8)).abs().sum() == 0


def test_a_training_can_follow_an_analysis_of_the_same_size():
    first, second = _features(8, 1, 2, 7, 19), _features(9, 1, 2, 7, 19)
    with torch.inference_mode():
        feature_ssim(first, second)
    second.requires_grad_()
    feature_ssim(first, second).sum().backward()
    assert second.grad.abs().sum() > 0
