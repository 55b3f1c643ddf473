"""Preparing healthy scans: what is usable is kept, what is broken is left out, and what is no scan is refused."""

import logging

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines import prepared_cache
from monailabel_app.pipelines.ixi import list_ixi
from monailabel_app.pipelines.predict import SHIPPED_MODELS as SHIPPED
from monailabel_app.pipelines.prepare import list_scans, list_sources, prepare_ixi
from monailabel_app.pipelines.prepared_cache import prepare_sources
from monailabel_app.preprocessing.pipeline import PrepareSettings
from tests import dicom_factory
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


def write_series(folder, seed):
    """A scan as a DICOM series; returns its folder."""
    volume, _, _ = scan(person(seed), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    dicom_factory.write_series(folder, volume, seed=seed, series=seed)
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
        cache = prepare_ixi(
            ixi,
            "train",
            save_template(tmp_path),
            cache_folder=tmp_path / "cache",
            workers=1,
            progress=lambda *now: told.append(now),
        )
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
    sources = list_sources(tmp_path / "scans")
    assert [s.path.name for s in sources] == ["a.nii.gz", "b.nrrd"]
    with pytest.raises(TrainingFailed, match=r"every one of 2 was refused.*NIfTI"):
        prepare_sources(sources, "t1", tmp_path / "cache", workers=0)


def test_folders_of_dicom_series_count_as_scans_at_any_depth(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "c.nii")
    one, two = write_series(tmp_path / "p1" / "s1", 1), write_series(tmp_path / "p1" / "s2", 2)
    three = write_series(tmp_path / "p2", 3)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.pdf").write_text("no scan")
    assert list_scans(tmp_path) == [tmp_path / "c.nii", one, two, three]
    assert [s.patient for s in list_sources(tmp_path)] == ["c.nii", "p1", "p1", "p2"]
    assert list_scans(three) == [three]


def test_a_dicom_series_is_known_again_by_its_files_whatever_they_are_called(tmp_path):
    folder = write_series(tmp_path / "series", 5)
    recipe = prepared_cache._recipe(SHIPPED / "template", SHIPPED / "brain_extraction", PrepareSettings())
    (before,) = [prepared_cache._file_key(s, recipe) for s in list_sources(folder)]
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"renamed{number}")
    assert [prepared_cache._file_key(s, recipe) for s in list_sources(folder)] == [before]
    (folder / "renamed3").unlink()
    assert prepared_cache._file_key(list_sources(folder)[0], recipe) != before


def test_of_several_series_in_one_folder_the_largest_is_the_scan_and_the_warning_says_so(tmp_path):
    write_series(tmp_path / "both", 1)
    write_series(tmp_path / "both", 2)
    (source,) = list_sources(tmp_path)
    volume, _ = source.read()
    assert "holds 2 image series; the largest" in str(volume.warnings)


def test_scans_of_one_bids_subject_are_one_patient_and_others_their_own(tmp_path):
    names = ["sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz", "sub-010_T1w.nii", "a.nii", "b.nrrd"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    patients = {s.path.name: s.patient for s in list_sources(tmp_path)}
    assert [patients[n] for n in names] == ["sub-01", "sub-01", "sub-010", "a.nii", "b.nrrd"]


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
