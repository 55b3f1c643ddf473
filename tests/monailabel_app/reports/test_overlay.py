"""The picture of a case: fixed colours, the right way round, and outlines where the lesion is."""

import io

import numpy as np
import pytest
from PIL import Image

from monailabel_app.calibration.tails import TAIL_SHARES, rarity
from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.reports.overlay import COLOURS, TRUTH_COLOUR, colour_bands, colour_thresholds, three_planes_png

TABLE = tuple(np.linspace(0.5, 4.8, len(TAIL_SHARES)))
TAILS = dict(zip(TAIL_SHARES, TABLE, strict=True))
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (24, 30, 20)


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pixels(shown: np.ndarray, colour) -> np.ndarray:
    """(n, 2) row and column of every pixel of exactly that colour."""
    return np.argwhere((shown == np.array(colour, np.uint8)).all(axis=-1))


def drawing(shown: np.ndarray) -> np.ndarray:
    """Without the lines of the legend."""
    return shown[: shown.shape[0] - 60]


def head() -> np.ndarray:
    image = np.zeros(SHAPE, np.float32)
    image[2:-2, 2:-2, 2:-2] = 0.5
    return image


def map_with(value: float, rest: float = 0.0) -> np.ndarray:
    found = np.where(head() > 0, rest, 0).astype(np.float32)
    found[16:20, 20:24, 9:13] = value
    return found


def test_the_same_value_has_the_same_colour_whatever_else_is_in_the_picture():
    value = 0.5 * (TAILS[0.01] + TAILS[0.001])
    for rest in (0.0, 0.9 * TAILS[0.05]):
        lone = drawing(picture(three_planes_png(head(), map_with(value, rest), None, None, AFFINE, TAILS)))
        beside = map_with(value, rest)
        beside[4:8, 4:8, 9:13] = 100.0
        striking = drawing(picture(three_planes_png(head(), beside, None, None, AFFINE, TAILS)))
        assert len(pixels(lone, COLOURS[1][1])) > 100
        assert len(pixels(lone, COLOURS[3][1])) == 0
        assert len(pixels(striking, COLOURS[3][1])) > 100
        # The planes run through the highest value now; the moderate one keeps its colour in the axial plane.
        assert len(pixels(striking, COLOURS[1][1])) > 100


def test_a_healthy_scan_is_not_painted():
    common = np.where(head() > 0, TAILS[0.05] * 0.99, 0)
    shown = drawing(picture(three_planes_png(head(), common, None, None, AFFINE, TAILS)))
    assert all(len(pixels(shown, colour)) == 0 for _, colour in COLOURS)


def test_the_colours_are_steps_of_rarity():
    values = np.linspace(0, 6, 500)
    rare = rarity(values, TABLE)
    bands = colour_bands(values, colour_thresholds(TAILS))
    for number, (share, _) in enumerate(COLOURS, start=1):
        assert (bands[rare > -np.log10(share) + 1e-3] >= number).all()
        assert (bands[rare < -np.log10(share) - 1e-3] < number).all()


def test_nothing_is_coloured_where_nothing_is_analysed():
    assert (colour_bands(np.zeros(5), (0.0, 0.0, 0.0, 0.0)) == 0).all()


@pytest.mark.parametrize("flip", [(), (0,), (1, 2), (0, 1, 2)])
def test_front_is_up_and_right_is_left_however_the_voxels_are_stored(flip):
    """A lesion at right, front, above the middle: in the axial plane it is left of and above the head's middle."""
    truth = np.zeros(SHAPE, bool)
    truth[16:20, 20:24, 12:14] = True
    affine = AFFINE.copy()
    for axis in flip:
        affine[axis, 3] = 2.0 * (SHAPE[axis] - 1)
        affine[axis, axis] = -2.0
    arrays = [np.flip(values, flip) for values in (head(), map_with(0.0), truth)]
    shown = drawing(picture(three_planes_png(*arrays[:2], arrays[2], None, affine, TAILS)))
    upright = drawing(picture(three_planes_png(head(), map_with(0.0), truth, None, AFFINE, TAILS)))
    assert (shown == upright).all()
    width = shown.shape[1]
    axial = shown[: shown.shape[0] // 2, : int(width * 24 / (24 + 24 + 30))]
    brain = np.argwhere(axial[..., 0] > 40)
    outline = pixels(axial, TRUTH_COLOUR)
    assert len(outline) > 20
    assert outline[:, 0].mean() < brain[:, 0].mean()
    assert outline[:, 1].mean() < brain[:, 1].mean()


def test_the_planes_run_through_the_largest_lesion():
    truth = np.zeros(SHAPE, bool)
    truth[4:6, 4:6, 4:6] = True
    large = truth.copy()
    large[14:20, 18:24, 9:15] = True
    found = drawing(picture(three_planes_png(head(), map_with(0.0), large, None, AFFINE, TAILS)))
    only = large & ~truth
    assert (found == drawing(picture(three_planes_png(head(), map_with(0.0), only, None, AFFINE, TAILS)))).all()


def test_a_slice_is_one_plane_twice():
    truth = np.zeros(SHAPE, bool)
    truth[14:20, 18:24, 9:15] = True
    arrays = [values[:, :, 10:11] for values in (head(), map_with(100.0), truth)]
    shown = drawing(picture(three_planes_png(*arrays, arrays[2], AFFINE, TAILS)))
    half = shown.shape[1] // 2
    outline = pixels(shown, TRUTH_COLOUR)
    assert (outline[:, 1] < half).sum() > 50
    assert (outline[:, 1] > half).sum() > 50
    coloured = pixels(shown, COLOURS[3][1])
    assert len(coloured) > 50
    assert (coloured[:, 1] > half).all()


def test_a_voxel_twice_as_tall_is_drawn_twice_as_tall():
    tall = np.diag([2.0, 2.0, 4.0, 1.0])
    flat = picture(three_planes_png(head(), map_with(0.0), None, None, AFFINE, TAILS))
    high = picture(three_planes_png(head(), map_with(0.0), None, None, tall, TAILS))
    assert flat.shape[1] == high.shape[1] == 900
    assert high.shape[0] > flat.shape[0]


def test_an_empty_scan_still_gives_a_picture():
    zeros = np.zeros(SHAPE, np.float32)
    assert picture(three_planes_png(zeros, zeros, None, None, AFFINE, TAILS, width=400)).shape[1] == 400


def test_arrays_of_other_grids_and_tables_without_shares_are_refused():
    with pytest.raises(InvalidVolume, match="map on the grid"):
        three_planes_png(head(), np.zeros((3, 3, 3)), None, None, AFFINE, TAILS)
    with pytest.raises(InvalidSettings, match="TAIL_SHARES"):
        three_planes_png(head(), map_with(0.0), None, None, AFFINE, TABLE)
