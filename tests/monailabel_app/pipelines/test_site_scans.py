"""The healthy scans of a folder by name, patient and list."""

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines.site_scans import scans_of_folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def dicom(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "1.dcm").write_bytes(bytes(128) + b"DICM")
    return folder


def test_without_a_list_every_scan_is_healthy_and_belongs_to_whom_its_name_says(tmp_path):
    touch(tmp_path, "sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz", "anna.nrrd")
    scans, left_out = scans_of_folder(tmp_path)
    assert {scan.id: scan.patient for scan in scans} == {
        "sub-01_ses-1_T1w": "sub-01",
        "sub-01_ses-2_T1w": "sub-01",
        "anna": "anna",
    }
    assert left_out == {}


def test_series_of_the_same_name_in_two_folders_stay_two_scans(tmp_path):
    dicom(tmp_path, "p1/t1", "p2/t1")
    scans, _ = scans_of_folder(tmp_path)
    assert {scan.id: scan.patient for scan in scans} == {"p1_t1": "p1", "p2_t1": "p2"}


def test_a_list_chooses_scans_and_names_patients(tmp_path):
    touch(tmp_path / "scans", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("scan,healthy,patient\na,yes,x\nb,no,y\n")
    scans, left_out = scans_of_folder(tmp_path / "scans", table)
    assert [(scan.id, scan.patient) for scan in scans] == [("a", "x")]
    assert left_out == {"not in the list": 1, "not healthy, by the list": 1}


def test_a_scan_with_a_final_label_that_is_not_empty_is_never_taken(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz")
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final_anna").mkdir()
    for name, value in (("final/a", 0), ("final/b", 1), ("final_anna/c", 1)):
        label = nib.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4))
        nib.save(label, tmp_path / "labels" / f"{name}.nii.gz")
    (tmp_path / "labels" / "final" / "d.nrrd").write_text("no label")
    scans, left_out = scans_of_folder(tmp_path)
    assert [scan.id for scan in scans] == ["a"]
    assert left_out == {"with a non-empty final label": 3}


def test_a_list_without_a_healthy_scan_is_an_error(tmp_path):
    touch(tmp_path / "scans", "a.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("scan,healthy\na,no\n")
    with pytest.raises(TrainingFailed, match="names none of them as healthy"):
        scans_of_folder(tmp_path / "scans", table)
