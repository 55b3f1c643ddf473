"""The datastore as a data set: which scans are cases, which are negatives, and what is left out and said."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from lib.contamination import Contamination
from lib.datastore import AnomalyLocalDatastore
from lib.healthy import healthy_scans
from lib.scoring import EvaluateLabels
from lib.scoring.evaluate import _scan_results, _with_note
from lib.scoring.labelled_set import labelled_scans, labelled_sets
from monailabel_app.errors import EvaluationFailed, InvalidSettings, UnknownModel
from monailabel_app.weights.listing import ModelEntry

SHAPE = (16, 16, 4)


def write(path, voxels):
    data = np.zeros(SHAPE, np.uint8)
    data.reshape(-1)[:voxels] = 1
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return str(path)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "studies").mkdir()
    for name in ("lesion", "lesion2", "reviewed", "marked", "nobody", "sub-07_FLAIR"):
        scan = np.random.default_rng(0).integers(1, 100, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "studies" / f"{name}.nii.gz")
    store = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii"])
    store.save_label("lesion", write(tmp_path / "a.nii.gz", 3), "final", {})
    store.save_label("lesion2", write(tmp_path / "b.nii.gz", 3), "final_anna", {})
    store.save_label("reviewed", write(tmp_path / "c.nii.gz", 0), "final", {})
    store.update_image_info("marked", {"healthy": True, "age": 44, "sex": "f", "patient": "P1"})
    store.update_image_info("lesion", {"age": True, "patient": "P2"})
    return store


def sets_of(store, **more):
    return labelled_sets(store, healthy_scans(store, {}), sequence="t1", **more)


def test_labels_make_cases_and_verdicts_make_negatives(store):
    (dataset,) = sets_of(store)
    assert (dataset.name, dataset.modality) == ("site_t1", "t1")
    scans = {scan.id: scan for scan in dataset.scans}
    assert set(scans) == {"lesion", "lesion2", "reviewed", "marked"}
    assert [scan.id for scan in dataset.cases] == ["lesion", "lesion2"]
    assert {scan.id for scan in dataset.healthy} == {"reviewed", "marked"}
    assert scans["lesion"].labels[0].name == "lesion.nii.gz"
    assert scans["lesion"].labels[0].parent.name == "final"
    assert scans["lesion2"].labels[0].parent.name == "final_anna"
    assert scans["marked"].attributes == {"age": 44.0, "sex": "f"}
    assert scans["lesion"].attributes == {}
    assert (scans["lesion"].patient, scans["marked"].patient, scans["lesion2"].patient) == ("P2", "P1", "lesion2")


def test_a_sequence_is_a_set_of_its_own_where_it_has_a_labelled_scan(store, tmp_path):
    assert len(sets_of(store)) == 1
    store.save_label("sub-07_FLAIR", write(tmp_path / "d.nii.gz", 5), "final", {})
    flair, t1 = sets_of(store)
    assert (flair.modality, t1.modality) == ("flair", "t1")
    (scan,) = flair.scans
    assert (scan.id, scan.patient) == ("sub-07_FLAIR", "sub-07")


def test_of_several_labels_the_final_one_is_the_truth_unless_it_is_empty(store, tmp_path):
    store.save_label("lesion", write(tmp_path / "e.nii.gz", 9), "final_anna", {})
    store.save_label("lesion2", write(tmp_path / "f.nii.gz", 0), "final", {})
    store.save_label("lesion2", write(tmp_path / "g.nii.gz", 7), "final_bert", {})
    labels = {scan.id: [path.parent.name for path in scan.labels] for scan in sets_of(store)[0].cases}
    assert labels == {"lesion": ["final"], "lesion2": ["final_anna", "final_bert"]}


def test_what_is_left_out_is_said_without_ids(store, tmp_path):
    file = tmp_path / "studies" / "labels" / "final" / "lesion.nii.gz"
    file.write_bytes(gzip.compress(b"no label"))
    (dataset,) = sets_of(store, learnt_from={"marked"})
    assert [scan.id for scan in dataset.scans] == ["lesion2", "reviewed"]
    assert dataset.notes == (
        "1 scans were left out: a model that is evaluated has learnt from them",
        "1 scans were left out: their final label could not be fetched or read",
    )


def test_without_a_labelled_scan_there_is_nothing_to_measure(store):
    for image, tag in (("lesion", "final"), ("lesion2", "final_anna")):
        store.remove_label(image, tag)
    assert labelled_scans(store) == []
    with pytest.raises(EvaluationFailed, match="final label"):
        sets_of(store)


@pytest.fixture
def method(tmp_path):
    folder = tmp_path / "model_weights" / "one"
    folder.mkdir(parents=True)
    models = {"one": ModelEntry("one", folder, "ddpm", {"modality": "t1"})}
    return EvaluateLabels(tmp_path, lambda: models, lambda store: healthy_scans(store, {}), Contamination(tmp_path))


def test_a_request_is_checked_before_anything_is_started(method, store, tmp_path):
    assert method.check({"models": "one", "workers": "2"}, store) == {"models": "one", "workers": "2"}
    assert method.check({"models": ["one"]}, store)
    assert method.check({}, store) == {}
    for request, error, said in (
        ({"models": "tree"}, UnknownModel, "'tree'.*one"),
        ({"mdels": "one"}, InvalidSettings, "'mdels'"),
        ({"workers": "many"}, InvalidSettings, "workers"),
        ({"device": "abacus"}, InvalidSettings, "device"),
    ):
        with pytest.raises(error, match=said):
            method.check(request, store)
    for image, tag in (("lesion", "final"), ("lesion2", "final_anna")):
        store.remove_label(image, tag)
    with pytest.raises(EvaluationFailed, match="submit final labels"):
        method.check({}, store)


def test_a_site_calibration_that_may_rest_on_the_healthy_scans_is_said(store, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "model_weights" / name).mkdir(parents=True)
    entries = [ModelEntry(name, tmp_path / "model_weights" / name, "ddpm", {}) for name in ("one", "two")]
    (dataset,) = sets_of(store)
    assert _with_note(dataset, entries) == dataset
    marker = tmp_path / "model" / "two" / "site_calibrations" / "USED-shipped"
    marker.parent.mkdir(parents=True)
    marker.write_text("2026-11-21-abcdef\n")
    (note,) = set(_with_note(dataset, entries).notes) - set(dataset.notes)
    assert "site calibration of two keeps no ids" in note


def test_results_of_a_scan_are_read_by_point(tmp_path):
    table = tmp_path / "scans.csv"
    table.write_text(
        "model,set,split,id,patient,healthy,score,calibration,scan_score,p_value,volume_ml,"
        "threshold_balanced,false_ml_balanced,dice_balanced,lesions_balanced,detected_balanced,false_positives_balanced\n"
        "one@0002,s,,a,P,0,l1,own,2.5,,5.7,1.2,0.4,0.61,3,2,1\n"
        "one@0002,s,,b,P,1,l1,own,1.5,0.5,,1.2,0.0,,,,0\n"
    )
    found = _scan_results(table, {"one@0002": "one"})
    lesion, healthy = found["a"]["one"], found["b"]["one"]
    assert lesion["points"]["balanced"] == {
        "false_ml": 0.4, "false_positives": 1, "dice": 0.61, "found": 2, "missed": 1,
    }  # fmt: skip
    assert (lesion["healthy"], lesion["volume_ml"], lesion["p_value"]) == (False, 5.7, None)
    assert healthy["points"]["balanced"] == {"false_ml": 0.0, "false_positives": 0}
    assert healthy["healthy"] is True
    assert "volume_ml" not in healthy
