"""Intensity normalisation: fixed percentiles, little moved by lesions, refused without contrast."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidVolume
from monailabel_app.preprocessing.normalize import normalize_intensity


@pytest.fixture
def case():
    mask = np.zeros((24, 24, 24), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    image = np.random.default_rng(0).normal(500, 80, mask.shape).astype(np.float32)
    return image, mask


def test_the_percentiles_of_the_brain_go_to_zero_and_four_fifths(case):
    image, mask = case
    out, (low, high) = normalize_intensity(image, mask)
    assert out.dtype == np.float32
    assert np.percentile(out[mask], 1) == pytest.approx(0, abs=1e-3)
    assert np.percentile(out[mask], 98) == pytest.approx(0.8, abs=1e-3)
    assert (low, high) == pytest.approx(tuple(np.percentile(image[mask], (1, 98))))
    assert out.min() == 0
    assert out.max() <= 1
    assert (out[~mask] == 0).all()


def test_gain_offset_and_background_do_not_matter(case):
    image, mask = case
    plain, _ = normalize_intensity(image, mask)
    changed = np.where(mask, 3.7 * image - 900, 1e6).astype(np.float32)
    np.testing.assert_allclose(normalize_intensity(changed, mask)[0], plain, atol=1e-4)


@pytest.mark.parametrize(("lesion_value", "share"), [(900.0, 0.015), (0.0, 0.007)])
def test_a_lesion_below_the_percentiles_hardly_changes_healthy_tissue(case, lesion_value, share):
    image, mask = case
    plain, _ = normalize_intensity(image, mask)
    lesion = np.zeros_like(mask)
    lesion[tuple(np.argwhere(mask)[: round(share * mask.sum())].T)] = True
    changed, _ = normalize_intensity(np.where(lesion, lesion_value, image).astype(np.float32), mask)
    healthy = mask & ~lesion
    assert np.abs(changed - plain)[healthy].mean() < 0.06


def test_a_bright_lesion_stays_above_the_healthy_range(case):
    image, mask = case
    image[10, 10, 10] = np.percentile(image[mask], 98) * 1.1
    assert normalize_intensity(image, mask)[0][10, 10, 10] > 0.8


def test_a_constant_brain_is_refused(case):
    image, mask = case
    with pytest.raises(InvalidVolume, match="constant value 7"):
        normalize_intensity(np.full_like(image, 7), mask)


def test_not_a_number_is_refused_and_so_is_an_empty_mask(case):
    image, mask = case
    image[5, 5, 5] = np.nan
    with pytest.raises(InvalidVolume, match="contrast"):
        normalize_intensity(image, mask)
    with pytest.raises(InvalidVolume, match="empty"):
        normalize_intensity(image, np.zeros_like(mask))
