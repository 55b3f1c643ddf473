"""A studies folder as the server leaves it is a data set for the evaluation, with the server's own verdicts."""

import nibabel as nib
import numpy as np
import pytest

from lib import reviewed
from lib.datastore import AnomalyLocalDatastore
from lib.healthy import healthy_scans
from monailabel_app.pipelines.evaluation.datasets import load_dataset
from monailabel_app.pipelines.evaluation.layouts import studies


def write(path, marked=0):
    data = np.zeros((16, 17, 8), np.uint8)
    data.reshape(-1)[:marked] = 1
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    return str(path)


@pytest.fixture
def store(tmp_path):
    store = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii", "*.nrrd"])
    for number, name in enumerate(("empty", "lesion", "marked", "patient", "proposal", "sub-01_T1w"), 1):
        store.add_image(name, write(tmp_path / f"{name}.nii.gz", marked=number), {})
    store.save_label("empty", write(tmp_path / "label.nii.gz"), "final", {})
    store.save_label("lesion", write(tmp_path / "label.nii.gz", 5), "final", {})
    store.save_label("sub-01_T1w", write(tmp_path / "label.nii.gz", 5), "final_anna", {})
    store.save_label("proposal", write(tmp_path / "label.nii.gz", 5), "anomaly", {})
    store.update_image_info("marked", {"healthy": True})
    store.update_image_info("patient", {"healthy": False})
    return store


def test_final_labels_are_cases_and_the_servers_healthy_scans_are_healthy(store, tmp_path):
    made = load_dataset(tmp_path / "studies", data_root=None, modality="t1")
    assert [scan.id for scan in made.healthy] == [scan.id for scan in healthy_scans(store, {}).scans]
    assert {scan.id: scan.labels for scan in made.cases} == {
        name: (tmp_path / "studies" / "labels" / tag / f"{name}.nii.gz",)
        for name, tag in (("lesion", "final"), ("sub-01_T1w", "final_anna"))
    }
    assert [scan.patient for scan in made.cases] == ["lesion", "sub-01"]
    assert [str(scan.image) for scan in made.scans] == [store.get_image_uri(scan.id) for scan in made.scans]


def test_a_scan_with_contradicting_verdicts_is_left_out_as_it_is_of_trainings(store, tmp_path):
    store.update_image_info("lesion", {"healthy": True})
    store.update_image_info("empty", {"healthy": False})
    made = load_dataset(tmp_path / "studies", data_root=None, modality="t1")
    assert {scan.id for scan in made.scans} == {"marked", "sub-01_T1w"}
    assert any(note.startswith("2 scans were left out: they are called healthy") for note in made.notes)


def test_the_words_of_the_server_are_known():
    assert studies._REVIEWED == reviewed.REVIEWED
    for tag in ("final", "final_anna", "final-ben", "finally", "original", "anomaly"):
        assert studies._is_final(tag) == reviewed.is_final(tag)
