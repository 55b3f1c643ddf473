"""The SSIM ensemble against a literal computation, MONAI and scikit-image, and at its edges."""

import numpy as np
import pytest
import torch

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.scoring import ssim_ensemble as module
from monailabel_app.scoring.ssim_ensemble import SIGMAS, kernel_radius, ssim_ensemble, ssim_map

SHAPE = (17, 15, 16)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.random(SHAPE).astype(np.float32)
    return image, np.clip(image + 0.2 * rng.standard_normal(SHAPE), 0, 1).astype(np.float32)


def literal_ssim(x: np.ndarray, y: np.ndarray, sigma: float) -> np.ndarray:
    """SSIM from its definition in float64, one voxel at a time over an explicit 3-D window."""
    radius = int(3.5 * sigma + 0.5)
    line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    window = line[:, None, None] * line[:, None] * line
    window /= window.sum()
    px, py = (np.pad(v.astype(np.float64), radius, mode="reflect") for v in (x, y))
    result = np.zeros(x.shape)
    size = 2 * radius + 1
    for i, j, k in np.ndindex(x.shape):
        a, b = (v[i : i + size, j : j + size, k : k + size] for v in (px, py))
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
        cov = (window * (a - ma) * (b - mb)).sum()
        result[i, j, k] = (
            (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        )
    return result


def test_window_sizes_are_those_of_the_paper():
    assert [2 * kernel_radius(s) + 1 for s in SIGMAS] == [3, 5, 5, 7, 9, 11, 11, 13]


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.7])
def test_a_map_equals_the_literal_definition_including_the_borders(pair, sigma):
    np.testing.assert_allclose(ssim_map(*pair, sigma).numpy(), literal_ssim(*pair, sigma), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_map_equals_monai_on_interior_voxels(pair, sigma):
    from monai.metrics.regression import compute_ssim_and_cs

    radius = kernel_radius(sigma)
    tensors = [torch.from_numpy(v)[None, None] for v in pair]
    size = (2 * radius + 1,) * 3
    expected, _ = compute_ssim_and_cs(
        *tensors, spatial_dims=3, kernel_size=size, kernel_sigma=(sigma,) * 3, data_range=1.0
    )
    inside = (slice(radius, -radius),) * 3
    torch.testing.assert_close(ssim_map(*pair, sigma)[inside], expected[0, 0], atol=4e-4, rtol=0)


def test_a_map_equals_scikit_image_on_interior_voxels(pair):
    from skimage.metrics import structural_similarity

    sigma = 1.5
    _, expected = structural_similarity(
        *pair,
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    inside = (slice(kernel_radius(sigma), -kernel_radius(sigma)),) * 3
    np.testing.assert_allclose(ssim_map(*pair, sigma).numpy()[inside], expected[inside], atol=4e-4)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_ensemble_is_the_softmax_weighted_mean_of_the_maps(pair, temperature):
    maps = torch.stack([ssim_map(*pair, s) for s in SIGMAS]).double()
    weights = torch.softmax(-maps / temperature, dim=0)
    expected = 1 - (weights * maps).sum(0).numpy()
    result = ssim_ensemble(*pair, np.ones(SHAPE, bool), temperature=temperature)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_low_temperature_approaches_the_least_similar_width(pair):
    lowest = torch.stack([ssim_map(*pair, s) for s in SIGMAS]).amin(0).numpy()
    result = ssim_ensemble(*pair, np.ones(SHAPE, bool), temperature=0.02)
    np.testing.assert_allclose(result, 1 - lowest, atol=0.02)


def test_slabs_do_not_change_the_result(pair, monkeypatch):
    mask = np.ones(SHAPE, bool)
    whole = ssim_ensemble(*pair, mask)
    monkeypatch.setattr(module, "_SLAB_VOXELS", 1)
    np.testing.assert_allclose(ssim_ensemble(*pair, mask), whole, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_identical_images_score_exactly_zero(pair, value):
    constant = np.full(SHAPE, value, np.float32)
    for image in (constant, pair[0]):
        assert np.abs(ssim_ensemble(image, image, np.ones(SHAPE, bool))).max() < 1e-6


def test_nothing_is_scored_outside_the_brain(pair):
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 4:9, 4:9] = True
    result = ssim_ensemble(*pair, mask)
    assert (result[~mask] == 0).all()
    assert (result[mask] > 0).all()
    assert (ssim_ensemble(*pair, np.zeros(SHAPE, bool)) == 0).all()


def test_structure_counts_where_the_mean_intensity_agrees():
    """A checkerboard against its own mean: no L1 edge, but nothing in common."""
    checker = (np.indices(SHAPE).sum(0) % 2).astype(np.float32)
    result = ssim_ensemble(checker, np.full(SHAPE, 0.5, np.float32), np.ones(SHAPE, bool))
    assert result.min() > 0.5


def test_swapping_the_images_changes_nothing(pair):
    mask = np.ones(SHAPE, bool)
    np.testing.assert_allclose(ssim_ensemble(*pair, mask), ssim_ensemble(*pair[::-1], mask), atol=1e-6)


def test_arrays_and_tensors_give_the_same_map(pair):
    mask = np.ones(SHAPE, bool)
    tensors = [torch.from_numpy(v) for v in (*pair, mask)]
    assert np.array_equal(ssim_ensemble(*pair, mask), ssim_ensemble(*tensors))


def test_a_volume_thinner_than_the_window_is_refused(pair):
    thin = pair[0][:6]
    with pytest.raises(InvalidVolume, match="more than 6 voxels"):
        ssim_ensemble(thin, thin, np.ones(thin.shape, bool))


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"sigmas": ()}, {"data_range": 0.0}]
)
def test_settings_out_of_range_are_refused(pair, options):
    with pytest.raises(InvalidSettings, match="Expected"):
        ssim_ensemble(*pair, np.ones(SHAPE, bool), **options)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpu_result(pair):
    mask = np.ones(SHAPE, bool)
    on_gpu = ssim_ensemble(*(torch.from_numpy(v).cuda() for v in (*pair, mask)))
    np.testing.assert_allclose(on_gpu, ssim_ensemble(*pair, mask), atol=1e-5)


def test_a_single_slice_has_the_score_of_a_stack_of_equal_slices():
    generator = np.random.default_rng(4)
    image, made = generator.random((2, 20, 22, 1)).astype(np.float32)
    mask = np.ones(image.shape, bool)
    thick = [np.repeat(values, 16, axis=2) for values in (image, made, mask)]
    np.testing.assert_allclose(
        ssim_ensemble(image, made, mask)[..., 0], ssim_ensemble(*thick)[..., 8], atol=1e-4
    )
