"""Grids: reordering is exact, resampling is centred, a blob comes back from any orientation."""

import itertools

import numpy as np
import pytest

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.geometry import (
    axcodes,
    check_affine,
    grid_around,
    mm_to_voxel,
    reorient,
    resample,
    spacing_mm,
    voxel_to_mm,
)

ALL_CODES = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]


def rotation(degrees, axis=2):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    out = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    out[a, a], out[a, b], out[b, a], out[b, b] = c, -s, s, c
    return out


def blob(shape, affine, centre_mm, sigma_mm):
    points = voxel_to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    return np.exp(-0.5 * np.sum((points - centre_mm) ** 2, -1) / sigma_mm**2).astype(np.float32)


def centre_of_mass_mm(data, affine):
    index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1)
    weight = data.astype(np.float64)[..., None]
    return voxel_to_mm(affine, (index * weight).sum((0, 1, 2)) / weight.sum())


@pytest.mark.parametrize("codes", ALL_CODES)
def test_reorienting_there_and_back_changes_no_voxel(codes):
    data = np.arange(2 * 4 * 5 * 6, dtype=np.float32).reshape(2, 4, 5, 6)
    affine = rotation(12) @ np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-7, 11, 3)
    out, out_affine = reorient(data, affine, codes)
    assert axcodes(out_affine) == codes
    index = (1, 2, 3)
    where = np.round(mm_to_voxel(out_affine, voxel_to_mm(affine, index))).astype(int)
    assert out[(0, *where)] == data[(0, *index)]
    back, back_affine = reorient(out, out_affine, axcodes(affine))
    np.testing.assert_array_equal(back, data)
    np.testing.assert_allclose(back_affine, affine, atol=1e-12)


@pytest.mark.parametrize("codes", ["RRS", "RA", "XYZ", "RASL"])
def test_impossible_axis_codes_are_refused(codes):
    with pytest.raises(InvalidVolume, match="three of R/L"):
        reorient(np.zeros((2, 2, 2)), np.eye(4), codes)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_grid_gives_the_same_voxels(order):
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    affine = rotation(20) @ np.diag([0.5, 0.5, 6.0, 1.0])
    np.testing.assert_allclose(resample(data, affine, data.shape, affine, order=order), data, atol=1e-5)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_a_permuted_grid_gives_the_permuted_voxels(codes):
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    affine = rotation(20) @ np.diag([1.0, 2.0, 3.0, 1.0])
    expected, target = reorient(data, affine, codes)
    np.testing.assert_allclose(resample(data, affine, expected.shape, target), expected, atol=1e-6)


def test_nearest_keeps_the_dtype_and_only_existing_labels():
    labels = np.random.default_rng(0).integers(0, 4, (6, 6, 6)).astype(np.uint8)
    out = resample(labels, np.eye(4), (9, 9, 9), np.diag([0.7, 0.7, 0.7, 1.0]), order=0)
    assert out.dtype == np.uint8
    assert set(np.unique(out)) <= {0, 1, 2, 3}
    assert resample(labels > 0, np.eye(4), (3, 3, 3), np.eye(4), order=0).dtype == bool


def test_linear_is_exact_on_a_ramp_at_half_voxels():
    ramp = np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), np.float32)
    target = np.eye(4)
    target[0, 3] = 0.5
    out = resample(ramp, np.eye(4), (7, 3, 3), target)
    np.testing.assert_allclose(out[:, 1, 1], np.arange(7) + 0.5, atol=1e-6)


def test_outside_of_the_source_voxels_is_fill():
    ones = np.ones((4, 4, 4), np.float32)
    target = np.eye(4)
    target[:3, 3] = -2
    out = resample(ones, np.eye(4), (8, 8, 8), target, fill=-1)
    assert (out[2:6, 2:6, 2:6] == 1).all()
    assert (out == 1).sum() == 64
    assert (out == -1).sum() == 8**3 - 64


def test_a_border_voxel_is_whole_up_to_its_edge():
    # Over the same box, the outermost fine centres lie beyond the coarse centres, inside the coarse voxels.
    ones = np.ones((4, 4, 4), np.float32)
    shape, fine = grid_around(ones.shape, np.diag([3.0, 3.0, 3.0, 1.0]), 1.0)
    assert shape == (12, 12, 12)
    np.testing.assert_array_equal(resample(ones, np.diag([3.0, 3.0, 3.0, 1.0]), shape, fine), 1)


def test_a_grid_around_keeps_centre_and_axes():
    affine = rotation(20, axis=0) @ np.diag([0.4, 0.4, 6.0, 1.0])
    affine[:3, 3] = (5, -3, 2)
    shape, new = grid_around((50, 60, 10), affine, 2.0)
    assert shape == (10, 12, 30)
    np.testing.assert_allclose(spacing_mm(new), 2.0)
    np.testing.assert_allclose(
        voxel_to_mm(new, (np.array(shape) - 1) / 2), voxel_to_mm(affine, (24.5, 29.5, 4.5)), atol=1e-9
    )


def test_antialiasing_removes_a_pattern_finer_than_the_target_grid():
    stripes = np.zeros((60, 12, 12), np.float32)
    stripes[::2] = 1
    target = np.diag([3.0, 1.0, 1.0, 1.0])
    sharp = resample(stripes, np.eye(4), (20, 12, 12), target, antialias=False)[2:-2]
    smooth = resample(stripes, np.eye(4), (20, 12, 12), target)[2:-2]
    assert np.ptp(sharp) == 1
    assert np.ptp(smooth) < 0.05
    assert abs(smooth.mean() - 0.5) < 0.02


def test_antialiasing_leaves_the_coarse_axis_sharp():
    # 0.4 x 0.4 x 6 mm to 2 mm: a step between two thick slices must not be widened by smoothing in plane.
    affine = np.diag([0.4, 0.4, 6.0, 1.0])
    data = np.zeros((50, 50, 8), np.float32)
    data[:, :, 4:] = 1
    shape, target = grid_around(data.shape, affine, 2.0)
    np.testing.assert_array_equal(
        resample(data, affine, shape, target), resample(data, affine, shape, target, antialias=False)
    )


def test_channels_are_resampled_alike():
    data = np.random.default_rng(0).random((2, 5, 5, 5)).astype(np.float32)
    target = np.diag([0.9, 1.1, 1.0, 1.0])
    out = resample(data, np.eye(4), (4, 4, 4), target)
    np.testing.assert_array_equal(out[1], resample(data[1], np.eye(4), (4, 4, 4), target))


def test_the_transform_moves_source_space_into_target_space():
    move = np.eye(4)
    move[:3, 3] = (2, -1, 3)
    data = np.zeros((9, 9, 9), np.float32)
    data[3, 4, 5] = 1
    out = resample(data, np.eye(4), (9, 9, 9), np.eye(4), transform=move)
    assert np.unravel_index(out.argmax(), out.shape) == (5, 3, 8)


SPACINGS = {"isotropic": (1.5, 1.5, 1.5), "anisotropic": (0.4, 0.4, 6.0), "thick_sagittal": (5.0, 0.9, 0.9)}


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_a_blob_comes_back_through_model_space_within_a_tenth_of_a_voxel(spacing, degrees, codes):
    shape = tuple(round(80 / s) for s in spacing)
    native = rotation(degrees, axis=1) @ np.diag([*spacing, 1.0])
    native[:3, 3] = -voxel_to_mm(native, (np.array(shape) - 1) / 2) + (3.3, -2.1, 1.7)
    centre = np.array([8.0, -5.0, 6.0])
    data, native = reorient(blob(shape, native, centre, 5.0), native, codes)
    to_model = rotation(7, axis=0) @ np.diag([1.08, 0.95, 1.03, 1.0])
    to_model[:3, 3] = (4, -6, 2)
    model = np.diag([2.0, 2.0, 2.0, 1.0])
    model[:3, 3] = -60
    there = resample(data, native, (61, 61, 61), model, transform=to_model)
    model_centre = voxel_to_mm(to_model, centre)
    assert np.abs(centre_of_mass_mm(there, model) - model_centre).max() < 0.1
    back = resample(there, model, data.shape, native, transform=np.linalg.inv(to_model))
    error = mm_to_voxel(native, centre_of_mass_mm(back, native)) - mm_to_voxel(native, centre)
    assert np.abs(error).max() < 0.1
    assert back.max() > 0.6


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.full((4, 4), np.nan), "finite"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "above zero"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.eye(3), "4x4"),
        (np.vstack([np.eye(4)[:3], [0, 0, 1, 1]]), "last row"),
    ],
)
def test_affines_that_describe_no_grid_are_refused(affine, message):
    with pytest.raises(InvalidVolume, match=message):
        check_affine(affine)


def test_wrong_arguments_are_refused():
    cube = np.zeros((3, 3, 3), np.float32)
    with pytest.raises(InvalidVolume, match="order"):
        resample(cube, np.eye(4), (3, 3, 3), np.eye(4), order=2)
    with pytest.raises(InvalidVolume, match="dimensions"):
        resample(cube[0], np.eye(4), (3, 3, 3), np.eye(4))
    with pytest.raises(InvalidVolume, match="target shape"):
        resample(cube, np.eye(4), (3, 0, 3), np.eye(4))
