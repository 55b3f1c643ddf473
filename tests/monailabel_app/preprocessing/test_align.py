"""Alignment: it undoes a known movement, repeats bit for bit, and refuses what is no brain."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from monailabel_app.errors import AlignmentFailed
from monailabel_app.io.geometry import resample, voxel_to_mm
from monailabel_app.preprocessing.align import align_brain
from monailabel_app.preprocessing.template import Template
from tests.monailabel_app.io.heads import rotation
from tests.monailabel_app.synthetic import Person, person, scan, template

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights" / "template"


def moved(fixed: Template, to_fixed: np.ndarray, shape, affine):
    """The template's own brain, moved so that ``to_fixed`` (mm -> mm) brings it back."""
    back = np.linalg.inv(to_fixed)
    mask = resample(fixed.brain_mask.astype(np.float32), fixed.affine, shape, affine, transform=back) >= 0.5
    return resample(fixed.mean, fixed.affine, shape, affine, transform=back) * mask, mask


def align(fixed: Template, image, affine, mask):
    return align_brain(image, affine, mask, fixed.mean, fixed.affine, fixed.brain_mask)


def corner_errors(fixed: Template, found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How far the corners of the brain's box land from where the known movement brings them, mm."""
    voxels = np.argwhere(fixed.brain_mask)
    ends = np.stack([voxels.min(0), voxels.max(0)])
    corners = voxel_to_mm(fixed.affine, np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, 3))
    return np.linalg.norm(voxel_to_mm(found @ np.linalg.inv(known), corners) - corners, axis=1)


def grid(shape, spacing=2.0):
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return shape, affine


@pytest.mark.parametrize("pitch", [None, 25, pytest.param(-25, marks=pytest.mark.slow)])
def test_a_known_movement_of_a_real_brain_is_undone_within_a_millimetre(pitch):
    fixed = Template.load(SHIPPED)
    if pitch is None:
        known = rotation(10, 2) @ rotation(-8, 0) @ np.diag([1.08, 0.95, 1.04, 1.0])
        known[:3, 3] = (12, -9, 6)
    else:
        known = rotation(pitch, 0)
        known[:3, 3] = (0, 10, -20)
    shape, affine = grid((100, 120, 100))
    image, mask = moved(fixed, known, shape, affine)
    found = align(fixed, image, affine, mask)
    assert corner_errors(fixed, found.matrix, known).max() < 1.0
    assert found.mask_dice > 0.95


def test_the_same_brain_aligns_to_the_same_bits():
    volume, brain, _ = scan(person(1))
    image = volume.data[0] * brain.mask
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first, second = (align(template(), image, volume.affine, brain.mask) for _ in range(2))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert (first.mask_dice, first.metric) == (second.mask_dice, second.metric)
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before


def test_the_size_of_a_head_is_found_in_each_direction():
    volume, brain, _ = scan(Person((1.08, 0.94, 1.0)), shape=(40, 44, 36))
    found = align(template(), volume.data[0] * brain.mask, volume.affine, brain.mask)
    np.testing.assert_allclose(1 / np.linalg.svd(found.matrix[:3, :3])[1][::-1], [1.08, 1.0, 0.94], atol=0.04)


@pytest.mark.slow
def test_an_inverted_contrast_aligns_within_a_few_voxels():
    """Less well than T1 does: near the rim, tissue and background have come closer to each other."""
    fixed = Template.load(SHIPPED)
    known = rotation(6, 2) @ np.diag([1.04, 0.97, 1.02, 1.0])
    known[:3, 3] = (5, -6, 4)
    shape, affine = grid((100, 120, 100))
    image, mask = moved(fixed, known, shape, affine)
    found = align(fixed, (1.2 - image).astype(np.float32) * mask, affine, mask)
    assert corner_errors(fixed, found.matrix, known).max() < 8.0
    assert found.mask_dice > 0.9


def test_a_brain_that_lies_right_already_is_not_moved_away():
    volume, brain, _ = scan(Person())
    found = align(template(), volume.data[0] * brain.mask, volume.affine, brain.mask)
    assert found.mask_dice > 0.95
    assert corner_errors(template(), found.matrix, np.eye(4)).max() < 2.0


def test_an_empty_mask_is_refused():
    volume, brain, _ = scan()
    with pytest.raises(AlignmentFailed, match="empty"):
        align(template(), volume.data[0], volume.affine, np.zeros_like(brain.mask))


def test_what_does_not_cover_the_template_is_refused():
    volume, _, _ = scan()
    rod = np.zeros(volume.shape, bool)
    rod[17:19, :, 17:19] = True
    noise = np.random.default_rng(0).normal(100, 20, volume.shape).astype(np.float32)
    with pytest.raises(AlignmentFailed, match=r"whole brain"):
        align(template(), noise * rod, volume.affine, rod)
