"""A reconstruction in its scan's illumination: bias goes, lesions stay."""

import numpy as np
import pytest

from monailabel_app.postprocessing.illumination import match_illumination


@pytest.fixture
def brain() -> np.ndarray:
    x, y, z = np.indices((40, 44, 40)) - np.array([20, 22, 20]).reshape(3, 1, 1, 1)
    return (x / 17) ** 2 + (y / 19) ** 2 + (z / 17) ** 2 <= 1


def test_smooth_gain_is_taken_over(brain):
    reconstruction = np.where(brain, 0.5, 0.0).astype(np.float32)
    gain = 1 + 0.1 * np.linspace(-1, 1, 40)[:, None, None]
    image = reconstruction * gain
    before = np.abs(image - reconstruction)[brain].mean()
    matched = match_illumination(image, reconstruction, brain, sigma_mm=15)
    assert np.abs(image - matched)[brain].mean() < 0.5 * before


def test_lesion_keeps_most_of_its_contrast(brain):
    reconstruction = np.where(brain, 0.5, 0.0).astype(np.float32)
    image = reconstruction.copy()
    image[18:21, 20:23, 18:21] -= 0.2
    matched = match_illumination(image, reconstruction, brain, sigma_mm=30)
    assert (matched - image)[19, 21, 19] > 0.9 * 0.2


def test_zero_sigma_changes_nothing(brain):
    reconstruction = np.where(brain, 0.4, 0.0).astype(np.float32)
    assert np.array_equal(match_illumination(reconstruction * 2, reconstruction, brain, sigma_mm=0), reconstruction)


def test_background_stays_zero(brain):
    image = np.where(brain, 0.9, 0.0).astype(np.float32)
    matched = match_illumination(image, image * 0.5, brain, sigma_mm=20)
    assert not matched[~brain].any()
    assert matched.max() <= 1
