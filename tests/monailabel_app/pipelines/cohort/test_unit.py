"""One scan becomes one record, whatever happens to it."""

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from monailabel_app.errors import BrainNotFound
from monailabel_app.pipelines.cohort import unit
from monailabel_app.pipelines.cohort.basis import ModelBasis, basis_of, input_hash, is_current, stamp_of
from monailabel_app.pipelines.cohort.unit import Analyst, Task, place
from monailabel_app.pipelines.predict import PredictSettings
from monailabel_app.types import Finding, GateReport, Lesion, to_json

MODEL = ModelBasis("one", Path("/models/one"), "one@0001", "h" * 64, "d" * 64, "shipped")


def found(volume, p_value=0.04):
    lesion = Lesion(1, 2.5, (1, 1, 1), (1.0, 1.0, 1.0), 3.0, 4.0)
    shape = volume.shape
    drift = {"distance": 0.1, "p_value": 0.5, "drifted": True, "more": 1}
    gate = GateReport(1.0, 0.5, 3.0, False, ("odd",) * 9)
    return Finding(
        np.ones(shape, np.uint8), np.ones(shape, np.float32), np.ones(shape, bool), volume.affine, (lesion,),
        3.14159265, p_value, 1.9, "one", "h" * 64, {}, {"reconstruction": 1.234}, gate=gate, drift=drift,
    )  # fmt: skip


@pytest.fixture
def analyst(monkeypatch):
    monkeypatch.setattr(unit, "predict", lambda volume, model, settings: model.answer(volume, settings))
    monkeypatch.setattr(unit, "thumbnail", lambda *_: b"picture")
    model = SimpleNamespace(answer=lambda volume, settings: found(volume))
    made = Analyst("cpu", load=lambda folder: model)
    made.model = model
    return made


@pytest.fixture
def task(tmp_path):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 32)), np.diag([5, 5, 5, 1])), tmp_path / "a.nii.gz"
    )
    return Task("p 1/ä.nii.gz", str(tmp_path / "a.nii.gz"), "t1", MODEL, PredictSettings(), str(tmp_path / "out"))


def test_a_record_says_what_was_found_by_what_and_in_which_file(analyst, task):
    record = analyst(task)
    json.dumps(to_json(record), allow_nan=False)
    assert (record["state"], record["score"], record["lesions"], record["volume_ml"]) == ("analysed", 3.1416, 1, 2.5)
    assert record["gate"]["passed"] is False
    assert record["drift"] == {"distance": 0.1, "p_value": 0.5, "drifted": True}
    assert record["input"] == input_hash(Path(task.path))
    assert (record["model_id"], record["model_hash"]) == ("one@0001", "h" * 64)
    assert is_current(record, basis_of(MODEL, PredictSettings()), stamp_of(Path(task.path)))


def test_a_flagged_scan_has_a_picture_and_others_have_none(analyst, task):
    record = analyst(task)
    assert (Path(task.out) / record["files"]["thumbnail"]).read_bytes() == b"picture"
    analyst.model.answer = lambda volume, settings: found(volume, p_value=0.3)
    record = analyst(task)
    assert (record["flagged"], record["files"]) == (False, {})


@pytest.mark.parametrize(("keep", "kinds"), [("none", set()), ("masks", {"mask"}), ("maps", {"mask", "map"})])
def test_files_are_kept_as_wished_on_the_scans_grid(analyst, task, keep, kinds):
    record = analyst(Task(**{**task.__dict__, "keep": keep}))
    assert set(record["files"]) - {"thumbnail"} == kinds
    for kind in kinds:
        assert nib.load(Path(task.out) / record["files"][kind]).shape == (32, 32, 32)


def test_the_device_is_the_workers(analyst, task):
    asked = []
    analyst.model.answer = lambda volume, settings: asked.append(settings.device) or found(volume)
    analyst(task)
    assert asked == ["cpu"]


def refuse(error):
    def answer(volume, settings):
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "kind", "passing"),
    [(BrainNotFound("no brain here"), "BrainNotFound", False), (ValueError("/secret/path"), "ValueError", True)],
)
def test_what_goes_wrong_is_the_record(analyst, task, error, kind, passing):
    analyst.model.answer = refuse(error)
    record = analyst(task)
    assert (record["state"], record["kind"], record["passing"]) == ("failed", kind, passing)
    assert "secret" not in record["error"]
    assert record["basis"]


def test_a_file_that_is_gone_is_a_record_too(analyst, task):
    record = analyst(Task(**{**task.__dict__, "path": "/nowhere/a.nii.gz"}))
    assert (record["state"], record["stamp"]) == ("failed", "")


@pytest.mark.parametrize("error", [MemoryError("all gone"), torch.cuda.OutOfMemoryError("GPU full")])
def test_want_of_memory_is_the_workers_end(analyst, task, error):
    analyst.model.answer = refuse(error)
    with pytest.raises(MemoryError):
        analyst(task)


def test_a_file_with_the_same_content_is_not_analysed(analyst, task):
    analyst.model.answer = refuse(AssertionError("analysed"))
    record = analyst(Task(**{**task.__dict__, "known": input_hash(Path(task.path))}))
    assert record["state"] == "same"


def test_only_two_models_are_kept_in_memory(task):
    loaded = []
    analyst = Analyst("cpu", load=lambda folder: loaded.append(folder) or object())
    for name in ("a", "b", "a", "c", "b"):
        analyst._model(Path(name))
    assert [str(folder) for folder in loaded] == ["a", "b", "c", "b"]


def test_places_are_safe_and_differ():
    names = ["../../etc/passwd", "a/b.nii", "a_b.nii", "ä" * 300, "a.b/c"]
    places = [place(name, "masks", ".nii.gz") for name in names]
    assert len(set(places)) == len(names)
    assert all(".." not in text and text.count("/") == 2 and text.isascii() and len(text) < 120 for text in places)


def test_a_basis_changes_with_what_decides_and_with_nothing_else():
    basis = basis_of(MODEL, PredictSettings())
    assert basis == basis_of(MODEL, PredictSettings(device="cuda:0"))
    assert basis != basis_of(MODEL, PredictSettings(operating_point="sensitive"))
    other = ModelBasis("one", MODEL.folder, MODEL.id, MODEL.hash, "e" * 64, "shipped")
    assert basis != basis_of(other, PredictSettings())


def test_a_dicom_series_is_stamped_and_hashed_by_all_its_files(tmp_path):
    for name in "12":
        (tmp_path / name).write_text(name)
    stamp, digest = stamp_of(tmp_path), input_hash(tmp_path)
    (tmp_path / "2").write_text("other")
    assert stamp_of(tmp_path) != stamp
    assert input_hash(tmp_path) != digest
    assert stamp_of(tmp_path / "gone") == ""
