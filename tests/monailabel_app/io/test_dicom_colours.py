"""Colours of segments, against the values that CIE and IEC give, and back as viewers take them."""

from itertools import combinations

import numpy as np
import pytest

from monailabel_app.calibration.bands import COLOURS
from monailabel_app.io.dicom_colours import PALETTE, cielab, colour_of


def as_lab(rgb):
    light, a, b = cielab(rgb)
    return np.array([light * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128])


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((128, 128, 128), (53.59, 0, 0)),
    ],
)
def test_a_colour_is_where_the_standards_have_it(rgb, lab):
    np.testing.assert_allclose(as_lab(rgb), lab, atol=0.02)


def test_no_two_colours_look_alike():
    """A difference of 2 is just seen; these are told apart in thin outlines."""
    for colours in (PALETTE, tuple(COLOURS.values())):
        nearest = min(np.linalg.norm(as_lab(one) - as_lab(other)) for one, other in combinations(colours, 2))
        assert nearest > 25
    assert [colour_of(number) for number in (1, len(PALETTE) + 1)] == [PALETTE[0]] * 2
