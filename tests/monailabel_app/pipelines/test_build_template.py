"""The template of a few people is their mean, in the pose that was asked for, with their regions."""

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.pipelines import build_template as module
from tests.monailabel_app.synthetic import (
    AFFINE,
    LEFT_FRONTAL,
    RIGHT_FRONTAL,
    SHAPE,
    Person,
    grid_points,
    person,
    scan,
    tissue,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("people")
    (base / "t1").mkdir()
    (base / "dlmuse").mkdir()
    rows = ["id,split"]
    for name in "ABC":
        volume, brain, _ = scan(person(500 + ord(name)))
        left = grid_points(volume.shape, volume.affine)[..., 0] < 0
        labels = np.where(brain.mask, np.where(left, LEFT_FRONTAL, RIGHT_FRONTAL), 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), base / "t1" / f"{name}_T1.nii.gz")
        nib.save(nib.Nifti1Image(labels, volume.affine), base / "dlmuse" / f"{name}_DLMUSE.nii.gz")
        rows.append(f"{name},train")
    (base / "participants.csv").write_text("\n".join(rows) + "\n")
    value, brain = tissue(grid_points(SHAPE, AFFINE), Person())
    nib.save(nib.Nifti1Image((value * brain).astype(np.float32), AFFINE), base / "pose.nii.gz")
    return base


def test_the_mean_brain_has_the_asked_pose_and_the_regions_of_its_people(folder, monkeypatch):
    monkeypatch.setattr(module, "TEMPLATE_SHAPE", SHAPE)
    monkeypatch.setattr(module, "TEMPLATE_AFFINE", AFFINE)
    made, dices = module.build_template(folder, folder / "pose.nii.gz", workers=1)
    assert made.shape == SHAPE
    assert len(dices) == 3
    assert min(dices) > 0.9
    assert 0 <= made.mean.min() < made.mean.max() <= 1
    _, brain = tissue(grid_points(SHAPE, AFFINE), Person())
    both = made.brain_mask & brain
    assert 2 * both.sum() / (made.brain_mask.sum() + brain.sum()) > 0.93
    for label, sign in ((LEFT_FRONTAL, -1), (RIGHT_FRONTAL, 1)):
        assert sign * voxel_to_mm(AFFINE, np.argwhere(made.regions == label).mean(0))[0] > 5
    assert (made.regions[made.brain_probability < 0.5] == 0).all()


def test_the_most_frequent_label_wins():
    def label(*values):
        return np.array(values, np.uint8).reshape(1, 1, 3)

    found = module._majority([label(5, 7, 0), label(5, 200, 0), label(9, 200, 3)])
    assert found.ravel().tolist() == [5, 200, 0]
    assert found.dtype == np.uint8
