"""Implanted lesions: plans repeat, shapes land in the brain, and the ground truth is exact."""

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import TrainingFailed
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.pipelines.implants import (
    ImplantPlan,
    implant,
    list_shapes,
    plan_implants,
    shape_on_grid,
    standard_to_template,
)
from tests.monailabel_app.synthetic import AFFINE, SHAPE, template

STANDARD = np.diag([4.0, 4.0, 4.0, 1.0])
STANDARD[:3, 3] = (-72, -104, -64)


def shape_file(folder, centre_mm, radius_mm, name="lesion.nii.gz"):
    """A ball in standard space."""
    size = (37, 45, 37)
    points = voxel_to_mm(STANDARD, np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1))
    ball = np.linalg.norm(points - np.array(centre_mm), axis=-1) < radius_mm
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), STANDARD), folder / name)
    return folder / name


def to_template():
    return standard_to_template(template().brain_mask, AFFINE)


def test_plans_repeat_and_use_every_shape_once_before_any_twice():
    plans = plan_implants(10, 20, 2, seed=1)
    assert plans == plan_implants(10, 20, 2, seed=1)
    assert plans != plan_implants(10, 20, 2, seed=2)
    assert [plan.scan for plan in plans] == [i // 2 for i in range(20)]
    assert len({plan.shape for plan in plans}) == 20
    assert len({plan.shape for plan in plan_implants(10, 5, 2, seed=1)}) == 5


def test_plans_stay_in_their_ranges_and_go_both_ways():
    plans = plan_implants(50, 10, 2, seed=0)
    contrasts = np.array([plan.contrast for plan in plans])
    assert (np.abs(contrasts) >= 0.1).all()
    assert (np.abs(contrasts) <= 0.4).all()
    assert (contrasts > 0).sum() == (contrasts < 0).sum() == 50
    assert all(1 <= plan.edge_sigma_mm <= 3 for plan in plans)


def test_the_standard_box_lies_over_the_brain_s():
    brain = template().brain_mask
    inside = np.argwhere(brain)
    low, high = (voxel_to_mm(AFFINE, v) for v in (inside.min(0) - 0.5, inside.max(0) + 0.5))
    np.testing.assert_allclose(voxel_to_mm(to_template(), (-70, -104, -64)), low)
    np.testing.assert_allclose(voxel_to_mm(to_template(), (70, 72, 78)), high)


def test_a_shape_lands_where_it_belongs_and_inside_the_brain(tmp_path):
    brain = template().brain_mask
    centre = np.array((-25.0, 10, 20))
    lesion = shape_on_grid(shape_file(tmp_path, centre, 18), to_template(), SHAPE, AFFINE, brain)
    assert lesion.dtype == bool
    assert not (lesion & ~brain).any()
    found = voxel_to_mm(AFFINE, np.argwhere(lesion).mean(0))
    np.testing.assert_allclose(found, voxel_to_mm(to_template(), centre), atol=1.5)


@pytest.mark.parametrize(("centre", "radius"), [((-70, 60, 70), 15), ((0, 0, 0), 3)])
def test_a_shape_outside_the_brain_or_of_no_size_is_left_out(tmp_path, centre, radius):
    path = shape_file(tmp_path, centre, radius)
    assert shape_on_grid(path, to_template(), SHAPE, AFFINE, template().brain_mask) is None


@pytest.mark.parametrize("contrast", [0.3, -0.3])
def test_only_the_ground_truth_and_its_soft_edge_change(tmp_path, contrast):
    brain, image = template().brain_mask, template().mean
    lesion = shape_on_grid(shape_file(tmp_path, (-25, 10, 20), 25), to_template(), SHAPE, AFFINE, brain)
    changed, gt_mask = implant(image, lesion, brain, ImplantPlan(0, 0, contrast, 1.5), (2.0, 2.0, 2.0))
    bright = gt_mask & (image > 0.1)
    assert np.sign(changed - image)[bright] == pytest.approx(np.sign(contrast))
    relative = ((changed - image) / np.maximum(image, 0.1))[bright]
    assert np.abs(relative).max() == pytest.approx(abs(contrast), rel=0.05)
    assert gt_mask.sum() == pytest.approx(lesion.sum(), rel=0.35)
    np.testing.assert_array_equal(changed[~brain], image[~brain])
    far = np.linalg.norm(np.argwhere(np.ones(SHAPE)) - np.argwhere(lesion).mean(0), axis=1).reshape(SHAPE) > 14
    np.testing.assert_array_equal(changed[far], image[far])


def test_shapes_are_listed_in_order_and_none_is_refused(tmp_path):
    with pytest.raises(TrainingFailed, match="lesion shapes"):
        list_shapes(tmp_path)
    for name in ("b.nii.gz", "a.nii.gz"):
        shape_file(tmp_path, (0, 0, 0), 9, name)
    assert [path.name for path in list_shapes(tmp_path)] == ["a.nii.gz", "b.nii.gz"]
