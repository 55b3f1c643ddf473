"""Each plain feature answers to what it is named after, and to little else."""

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import CorruptModel
from monailabel_app.pipelines.gate_features import FEATURES, PLAIN, HealthyLook, measure
from tests.monailabel_app.synthetic import template, training_cache


@pytest.fixture(scope="module")
def healthy():
    """Template, look, and one healthy brain (image, mask) that made neither."""
    cache = training_cache(range(4))
    own = training_cache([50])
    image, mask = own.images[0].numpy() / np.float32(255), own.brain_masks[0].numpy()
    return template(), HealthyLook.fit(cache), image, mask


def values_of(healthy, image=None, mask=None, volume_ml=90.0):
    made, look, own_image, own_mask = healthy
    image = own_image if image is None else image
    mask = own_mask if mask is None else mask
    return measure(np.where(mask, image, 0).astype(np.float32), mask, volume_ml, made, look)


def test_every_plain_feature_is_measured_and_finite(healthy):
    values, places = values_of(healthy)
    assert set(values) == set(PLAIN)
    assert all(np.isfinite(value) for value in values.values())
    assert set(places) == {"coverage", "dark_ml", "bright_ml"}


@pytest.mark.parametrize(("axis", "name"), [(1, "front_back"), (2, "upside_down")])
def test_a_flipped_brain_fits_better_flipped_back(healthy, axis, name):
    _, _, image, mask = healthy
    as_it_is, _ = values_of(healthy)
    flipped, _ = values_of(healthy, np.flip(image, axis), np.flip(mask, axis))
    assert as_it_is[name] < -0.05
    assert flipped[name] > 0.05
    assert flipped["template_correlation"] < as_it_is["template_correlation"] - 0.05


def test_exchanged_sides_turn_the_asymmetry_round(healthy):
    _, _, image, mask = healthy
    as_it_is, _ = values_of(healthy)
    flipped, _ = values_of(healthy, image[::-1], mask[::-1])
    assert as_it_is["left_right"] > 0.3
    assert flipped["left_right"] < -0.3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_missing_slab_shows_in_the_coverage_and_is_placed(healthy, axis):
    _, _, image, _mask = healthy
    index = [slice(None)] * 3
    index[axis] = slice(14, 20)
    cut = image.copy()
    cut[tuple(index)] = 0
    values, places = values_of(healthy, cut)
    assert values["coverage"] < 0.1 < values_of(healthy)[0]["coverage"]
    assert ("left to right", "back to front", "bottom to top")[axis] in places["coverage"]


def test_a_void_is_measured_in_millilitres_and_placed(healthy):
    _, _, image, mask = healthy
    bright = np.where(mask, np.maximum(image, 0.5), 0).astype(np.float32)
    void = bright.copy()
    void[8:16, 20:28, 14:22] = 0  # 8 voxels of 2 mm each way: 4.1 ml around x -8, y +8
    values, places = values_of(healthy, void)
    assert 2 < values["dark_ml"] < 8
    numbers = [float(part.split()[1]) for part in places["dark_ml"].replace(" mm", "").split(" (")[0][7:].split(", ")]
    assert np.allclose(numbers, [-8, 8, 4], atol=4)


def test_noise_and_blur_move_their_own_features(healthy):
    _, _, image, _mask = healthy
    noisy = image + 0.05 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    as_it_is, _ = values_of(healthy)
    assert values_of(healthy, noisy)[0]["noise"] > 1.3 * as_it_is["noise"]
    assert values_of(healthy, ndimage.gaussian_filter(image, 1.5))[0]["sharpness"] < 0.9 * as_it_is["sharpness"]


def test_inverted_grey_values_change_correlation_and_histogram(healthy):
    _, _, image, _mask = healthy
    as_it_is, _ = values_of(healthy)
    inverted, _ = values_of(healthy, 0.8 - np.minimum(image, 0.8))
    assert inverted["template_correlation"] < 0 < as_it_is["template_correlation"]
    assert inverted["histogram_distance"] > 3 * as_it_is["histogram_distance"]


def test_a_wide_mask_shows_outside_the_brain(healthy):
    _, _, image, mask = healthy
    wide = ndimage.binary_dilation(mask, iterations=3)
    as_it_is, grown = values_of(healthy)[0], values_of(healthy, image + 0.3, wide)[0]
    assert grown["outside_ml"] > as_it_is["outside_ml"] + 5
    assert grown["outline_misfit"] > as_it_is["outline_misfit"]


def test_the_outline_features_hold_for_any_contrast(healthy):
    _, _, image, _mask = healthy
    first, second = values_of(healthy)[0], values_of(healthy, np.where(image > 0, 0.1 + 0.5 * (1 - image), 0))[0]
    for name in PLAIN:
        if FEATURES[name].outline:
            assert first[name] == pytest.approx(second[name], abs=0.02), name


def test_the_healthy_look_comes_back_from_its_file(healthy, tmp_path):
    _, look, _, _ = healthy
    look.save(tmp_path / "look.safetensors")
    again = HealthyLook.load(tmp_path / "look.safetensors")
    np.testing.assert_allclose(again.mean, look.mean, atol=1e-3)
    (tmp_path / "look.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptModel, match="restore its folder"):
        HealthyLook.load(tmp_path / "look.safetensors")
