"""Planes of a report: the right way round whatever the order of the voxels, in fixed colours, in millimetres."""

import io

import numpy as np
import pytest
from PIL import Image

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.geometry import reorient
from monailabel_app.reports.overlay import COLOURS
from monailabel_app.reports.study_planes import Head, Printed

THRESHOLDS = (1.0, 2.0, 3.0, 4.0)
SHAPE, AFFINE = (30, 40, 20), np.diag([1.0, 1.0, 2.0, 1.0])
SPOT = (24, 33, 15)  # right, front, up


def head(codes="RAS", **changes) -> tuple[Head, tuple[int, ...]]:
    """A head with one bright, marked voxel in the order of ``codes``, and where that voxel is in it."""
    brain = np.zeros(SHAPE, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    scan = np.where(brain, 50.0, 0).astype(np.float32)
    scan[SPOT] = 100
    values = np.where(brain, 0.5, 0).astype(np.float32)
    values[SPOT] = 3.5
    mask = np.zeros(SHAPE, np.uint8)
    mask[SPOT] = 1
    arrays = {"scan": scan, "anomaly_map": values, "brain_mask": brain, "mask": mask, "reconstruction": scan} | changes
    turned = {name: a if a is None else reorient(a, AFFINE, codes)[0] for name, a in arrays.items()}
    made = Head(**turned, affine=reorient(scan, AFFINE, codes)[1])
    return made, tuple(int(v) for v in np.argwhere(turned["mask"])[0])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "IAL"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_right_and_front_are_on_the_left_and_up_is_up_in_every_voxel_order(codes, axis):
    made, voxel = head(codes)
    at = made.place(voxel)
    assert at == SPOT
    plane = made.plane(axis, at)
    row, column = np.argwhere(plane.grey == plane.grey.max())[0]
    across, down = (a for a in range(3) if a != axis)
    # The spot lies towards right, front and top in all three directions.
    assert column < plane.grey.shape[1] / 2
    assert row < plane.grey.shape[0] / 2
    left, top = made.point(axis, at)
    size = made.spacing
    assert int(left / size[across]) == column
    assert int(top / size[down]) == row
    assert plane.mask[row, column]
    assert plane.at_mm == pytest.approx(SPOT[axis] * AFFINE[axis, axis])


def test_a_value_has_the_colour_of_its_rarity_whatever_else_is_there():
    made, _ = head()
    values = np.zeros(SHAPE, np.float32)
    values[4:-4, 4:-4, 4:-4] = 2.5
    for other in (0.0, 1000.0):
        values[5, 5, 5] = other
        plane = head(anomaly_map=values)[0].plane(2, (10, 10, 10))
        shown = np.asarray(Image.open(io.BytesIO(Printed(plane, 1.0).colours(THRESHOLDS))).convert("RGBA"))
        middle = shown[shown.shape[0] // 2, shown.shape[1] // 2]
        assert tuple(middle) == (*COLOURS[1][1], 255)
    assert Printed(made.plane(2, (10, 10, 3)), 1.0).colours(THRESHOLDS) is None


def test_pictures_have_the_size_of_paper():
    plane = head()[0].plane(1, SPOT)
    rows, columns = Printed(plane, 0.5, dots_per_mm=8).pixels
    assert rows == round(plane.size_mm[0] * 4)
    assert Image.open(io.BytesIO(Printed(plane, 0.5, dots_per_mm=8).grey())).size == (columns, rows)


def test_the_projection_shows_the_highest_marked_value_and_nothing_that_is_not_marked():
    values = np.where(np.ones(SHAPE, bool), 9.0, 0).astype(np.float32)
    values[SPOT] = 3.5
    made, _ = head(anomaly_map=values)
    for axis in range(3):
        plane = made.projection(axis)
        assert plane.values.max() == pytest.approx(3.5)
        assert plane.mask.sum() == 1


def test_the_outline_goes_around_what_is_marked_in_mm():
    made, voxel = head()
    plane = made.plane(2, made.place(voxel))
    numbers = np.array([float(n) for n in Printed(plane, 1.0).outline().strip("MZ").replace("L", " ").split()])
    centre = numbers.reshape(-1, 2)[:-1].mean(axis=0)
    assert centre == pytest.approx(made.point(2, SPOT), abs=0.1)


def test_thick_slices_are_shown_in_their_own_planes():
    thick = np.diag([6.0, 1.0, 1.0, 1.0])
    scan = np.ones((10, 40, 40), np.float32)
    made = Head(scan, scan, scan, scan * 0, thick)
    assert made.main_axis() == 0
    assert head()[0].main_axis() == 2


def test_levels_run_through_the_brain_without_repeats():
    made = head()[0]
    levels = made.levels(2, 6)
    assert len(levels) == 6
    assert levels == sorted(set(levels))
    assert min(levels) >= 3
    assert max(levels) <= SHAPE[2] - 4
    assert made.levels(2, 500) == list(range(3, SHAPE[2] - 3))


def test_arrays_of_another_grid_are_refused():
    with pytest.raises(InvalidVolume, match="grid"):
        Head(np.ones((4, 4, 4)), np.ones((4, 4, 5)), np.ones((4, 4, 4)), np.ones((4, 4, 4)), np.eye(4))
