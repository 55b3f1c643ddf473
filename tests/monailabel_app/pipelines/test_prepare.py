"""Preparing healthy scans: what is usable is kept, what is broken is left out, and what is no scan is refused."""

import logging

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines.ixi import list_ixi
from monailabel_app.pipelines.prepare import list_scans, prepare_files, prepare_ixi
from tests.monailabel_app.synthetic import LEFT_FRONTAL, SHAPE, person, save_template, scan


@pytest.fixture(scope="module")
def ixi(tmp_path_factory):
    """A folder like ``ixi_t1``: three train scans, the second broken, the third without labels, and one val scan."""
    folder = tmp_path_factory.mktemp("ixi")
    (folder / "t1").mkdir()
    (folder / "dlmuse").mkdir()
    rows = ["id,age,sex,split"]
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[:3, 3] = (35, -43, -35)
    for index, (name, split) in enumerate([("A", "train"), ("B", "train"), ("C", "train"), ("D", "val")]):
        rows.append(f"{name},30,F,{split}")
        volume, brain, _ = scan(person(400 + index), affine=flipped)
        labels = np.where(brain.mask, LEFT_FRONTAL, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), folder / "t1" / f"{name}_T1.nii.gz")
        if name != "C":
            nib.save(nib.Nifti1Image(labels, volume.affine), folder / "dlmuse" / f"{name}_DLMUSE.nii.gz")
    broken = folder / "t1" / "B_T1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    (folder / "participants.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_splits_are_those_of_the_table(ixi):
    assert [s.id for s in list_ixi(ixi, "train")] == ["A", "B", "C"]
    assert [s.id for s in list_ixi(ixi, "val")] == ["D"]


def test_a_scan_and_its_labels_are_turned_to_ras_together(ixi):
    (one,) = list_ixi(ixi, "val")
    volume, labels, brain = one.volume(), one.region_labels(), one.brain_mask()
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.data.shape == (1, *labels.shape)
    assert labels.dtype == np.uint8
    assert (brain >= (labels > 0)).all()
    assert volume.data[0][labels > 0].mean() > 400 > volume.data[0][~brain].mean()


def test_usable_scans_are_prepared_and_broken_ones_left_out_with_a_warning(ixi, tmp_path, caplog):
    told = []
    with caplog.at_level(logging.WARNING):
        cache = prepare_ixi(ixi, "train", save_template(tmp_path), workers=1, progress=lambda *now: told.append(now))
    assert cache.ids == ("A",)
    assert cache.images.shape == (1, *SHAPE)
    assert cache.modality == "t1"
    assert cache.images[cache.brain_masks].float().mean() > 80
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [f"scan {i} of 3" in caplog.text for i in (1, 2, 3)] == [False, True, True]
    assert str(ixi) not in caplog.text


def test_when_no_scan_is_usable_it_says_so(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("a.nii.gz", "b.nrrd"):
        (tmp_path / "scans" / name).write_bytes(b"nothing")
    paths = list_scans(tmp_path / "scans")
    assert [p.name for p in paths] == ["a.nii.gz", "b.nrrd"]
    with pytest.raises(TrainingFailed, match="every one was refused"):
        prepare_files(paths, "t1", save_template(tmp_path), tmp_path / "no_extractor", workers=1)


def test_a_folder_without_scans_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(TrainingFailed, match="NIfTI or NRRD"):
        list_scans(tmp_path)
    with pytest.raises(TrainingFailed, match="found none at"):
        list_scans(tmp_path / "absent")


def test_a_folder_that_is_not_ixi_and_a_split_without_scans_are_refused(ixi, tmp_path):
    with pytest.raises(TrainingFailed, match=r"participants\.csv"):
        list_ixi(tmp_path, "train")
    with pytest.raises(TrainingFailed, match=r"'test'.*train and val"):
        list_ixi(ixi, "test")
