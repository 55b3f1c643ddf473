"""Erosion in mm: distances, anisotropic voxels, volume borders."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.erosion import erode_brain


@pytest.fixture
def cube() -> np.ndarray:
    mask = np.zeros((13, 13, 13), bool)
    mask[2:11, 2:11, 2:11] = True
    return mask


def test_zero_distance_keeps_the_mask(cube):
    np.testing.assert_array_equal(erode_brain(cube, distance_mm=0, spacing_mm=(1, 1, 1)), cube)


def test_one_voxel_layer_goes_at_one_voxel_distance(cube):
    expected = np.zeros_like(cube)
    expected[3:10, 3:10, 3:10] = True
    np.testing.assert_array_equal(erode_brain(cube, distance_mm=1, spacing_mm=(1, 1, 1)), expected)


def test_the_distance_is_in_millimetres_along_each_axis(cube):
    eroded = erode_brain(cube, distance_mm=2, spacing_mm=(1, 2, 4))
    assert [int(eroded.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [5, 7, 9]


def test_the_border_of_the_volume_is_an_edge_of_the_brain():
    eroded = erode_brain(np.ones((5, 5, 5), bool), distance_mm=1, spacing_mm=(1, 1, 1))
    assert eroded.sum() == 27


def test_a_brain_thinner_than_the_distance_or_empty_gives_nothing(cube):
    assert not erode_brain(cube, distance_mm=10, spacing_mm=(1, 1, 1)).any()
    assert not erode_brain(np.zeros_like(cube), distance_mm=2, spacing_mm=(1, 1, 1)).any()


def test_a_negative_distance_is_refused(cube):
    with pytest.raises(InvalidSettings, match="distance_mm"):
        erode_brain(cube, distance_mm=-1, spacing_mm=(1, 1, 1))


def test_a_single_slice_is_eroded_in_its_plane():
    square = np.zeros((12, 12, 1), bool)
    square[2:10, 3:9] = True
    eroded = erode_brain(square, distance_mm=2.0, spacing_mm=(2.0, 2.0, 5.0))
    expected = np.zeros_like(square)
    expected[3:9, 4:8] = True
    np.testing.assert_array_equal(eroded, expected)
