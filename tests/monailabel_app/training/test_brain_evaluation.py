"""Measuring brain extraction: the numbers are Dice on the native grid, whatever that grid is."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.training.brain_evaluation import dice, geometry_changes, ixi_cases, painted_cases, save_picture
from monailabel_app.types import Volume


class Threshold(torch.nn.Module):
    """Calls everything above 60 % of the brightest grey value brain."""

    def forward(self, x):
        score = 40 * (x - 0.6)
        return torch.cat([-score, score], 1)


@pytest.fixture(scope="module")
def scan():
    """A bright ball (brain, 1.1 litres) in a dim one (head), 4 mm, axes P S R, and the brain's voxels."""
    shape = (44, 44, 42)
    affine = np.array([[0, 0, 4.0, -84], [-4.0, 0, 0, 88], [0, 4.0, 0, -88], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    radius = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3], axis=-1)
    data = np.where(radius < 78, 300.0, 0.0) + np.where(radius < 64, 700.0, 0.0)
    data += np.random.default_rng(0).random(shape)
    return Volume(data.astype(np.float32)[None], affine), radius < 64


def test_dice_of_equal_disjoint_and_empty_masks():
    a = np.array([True, True, False, False])
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a, np.array([True, False, False, False])) == pytest.approx(2 / 3)
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_another_grid_for_the_same_scan_keeps_the_mask(scan):
    extractor = BrainExtractor(Threshold(), {"spacing_mm": 4.0, "network": {"strides": [2]}})
    changes = geometry_changes(extractor, scan[0])
    assert {"LPI", "spacing_4_mm", "oblique_30_degrees", "slab_middle"} <= set(changes)
    assert min(changes.values()) > 0.9
    assert changes["LPI"] > 0.999


def test_validation_cases_are_scans_with_their_filled_mask_and_can_be_painted(scan, tmp_path):
    volume, brain = scan
    for folder in ("t1", "dlmuse"):
        (tmp_path / "ixi_t1" / folder).mkdir(parents=True)
    regions = np.where(brain, 83, 0).astype(np.uint8)
    regions[20:23, 20:23, 20:23] = 0
    nib.save(nib.Nifti1Image(volume.data[0], volume.affine), tmp_path / "ixi_t1" / "t1" / "a_T1.nii.gz")
    nib.save(nib.Nifti1Image(regions, volume.affine), tmp_path / "ixi_t1" / "dlmuse" / "a_DLMUSE.nii.gz")
    with (tmp_path / "ixi_t1" / "participants.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "split"), ("a", "val"), ("b", "train")])
    ((name, read, mask),) = ixi_cases(tmp_path)
    assert name == "a"
    assert np.allclose(read.data, volume.data, atol=0.1)
    assert dice(mask, brain) > 0.98
    ((_, painted, same),) = painted_cases(tmp_path, "t2")
    assert painted.shape == volume.shape
    assert np.array_equal(same, mask)
    # voxel order survives: what is painted lies where the head is
    assert painted.data[0][brain].mean() > 3 * painted.data[0][~brain].mean()


def test_the_picture_shows_three_planes_with_a_red_contour(scan, tmp_path):
    volume, brain = scan
    save_picture(tmp_path / "case.png", volume, brain)
    picture = np.asarray(Image.open(tmp_path / "case.png").convert("RGB")).astype(int)
    assert picture.shape[1] > 2 * picture.shape[0]
    red = (picture[..., 0] - picture[..., 1]) > 100
    assert 0.001 < red.mean() < 0.05
