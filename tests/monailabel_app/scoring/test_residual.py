"""Residual scores: values, signs, the mask, and what they refuse."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring import SCORES
from monailabel_app.scoring.residual import l1_residual, signed_residual, squared_residual


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, reconstruction = np.full((2, 8, 8, 8), 0.5, np.float32)
    image[2, 2, 2], image[3, 3, 3], image[7, 7, 7] = 0.9, 0.2, 1.0
    mask = np.ones((8, 8, 8), bool)
    mask[7] = False
    return image, reconstruction, mask


def test_l1_and_squared_are_magnitudes(case):
    l1, squared = l1_residual(*case), squared_residual(*case)
    assert l1[2, 2, 2] == pytest.approx(0.4)
    assert l1[3, 3, 3] == pytest.approx(0.3)
    np.testing.assert_allclose(squared, l1**2, atol=1e-7)


def test_signed_directions_add_up_to_the_signed_residual(case):
    both, positive, negative = (signed_residual(*case, direction=d) for d in ("both", "positive", "negative"))
    assert both[2, 2, 2] == pytest.approx(0.4)
    assert both[3, 3, 3] == pytest.approx(-0.3)
    assert positive.min() >= 0
    assert negative.min() >= 0
    np.testing.assert_allclose(positive - negative, both)
    np.testing.assert_allclose(positive + negative, l1_residual(*case))


def test_an_unknown_direction_is_refused(case):
    with pytest.raises(InvalidSettings, match="direction"):
        signed_residual(*case, direction="up")


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_is_float32_zero_outside_the_brain_and_zero_for_a_perfect_reconstruction(case, name):
    image, reconstruction, mask = case
    result = SCORES[name](image, reconstruction, mask)
    assert result.dtype == np.float32
    assert result.shape == image.shape
    assert (result[~mask] == 0).all()
    assert np.abs(result).max() > 0
    assert np.abs(SCORES[name](image, image, mask)).max() < 1e-6


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_names_shapes_that_differ_and_values_that_are_not_finite(case, name):
    image, reconstruction, mask = case
    with pytest.raises(InvalidVolume, match="one shape"):
        SCORES[name](image, reconstruction[:-1], mask)
    broken = reconstruction.copy()
    broken[1, 1, 1] = np.nan
    with pytest.raises(InvalidVolume, match="reconstruction"):
        SCORES[name](image, broken, mask)
