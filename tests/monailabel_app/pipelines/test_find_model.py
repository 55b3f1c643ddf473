"""A model is found by folder, by name (what serves) or by name and version, with its template wherever it lies."""

import logging

import pytest
import torch
from typer.testing import CliRunner

from monailabel_app import cli, cli_predict
from monailabel_app.errors import CorruptModel, UnknownModel
from monailabel_app.pipelines import predict
from monailabel_app.pipelines.find_model import AUTO, companion, find_model, find_model_for, list_model_folders
from monailabel_app.pipelines.sequences import stand_ins
from monailabel_app.weights.listing import list_models
from monailabel_app.weights.model_folder import seal, write_config, write_weights
from monailabel_app.weights.versions import new_staging, publish, rollback

NAME = "ddpm_t1"


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm"})
    write_weights(folder, {"w": torch.zeros(2)})
    (folder / "calibration.json").write_text("{}")
    seal(folder)
    return folder


def calibrated(root):
    return {name: entry for name, entry in list_models(root).items() if entry.calibrated}


@pytest.fixture
def root(tmp_path):
    write_model(tmp_path / "model_weights" / NAME)
    (tmp_path / "model_weights" / "template").mkdir()
    for _ in range(2):
        publish(tmp_path, NAME, write_model(new_staging(tmp_path, NAME)), promote=True)
    return tmp_path


def test_a_name_is_what_serves_and_a_version_need_not_serve(root):
    folders = root / "model" / NAME / "versions"
    assert find_model(NAME, root) == folders / "0002"
    assert find_model(f"{NAME}@0001", root) == find_model(f"{NAME}@1", root) == folders / "0001"
    assert find_model(f"{NAME}@shipped", root) == root / "model_weights" / NAME
    rollback(root, NAME)
    assert find_model(NAME, root) == folders / "0001"
    assert list_model_folders(root) == [folders / "0001"]


@pytest.mark.parametrize("name", [f"{NAME}@0007", "other", "other@1", "../x@1"])
def test_what_is_not_there_is_refused(root, name):
    with pytest.raises(UnknownModel):
        find_model(name, root)


def test_the_template_of_a_version_is_the_shipped_one_unless_one_lies_beside_the_model(root):
    for folder in (
        find_model(NAME, root),
        new_staging(root, NAME),
        root / "model_weights" / NAME,
        root / "model" / "a",
    ):
        assert companion(folder, "template") == root / "model_weights" / "template"
    (root / "model" / "template").mkdir()
    assert companion(find_model(NAME, root), "template") == root / "model" / "template"


def test_a_misspelt_name_is_answered_with_the_one_that_is_meant(root):
    with pytest.raises(UnknownModel, match=r"out of ddpm_t1; got 'dpdm_t1' \(meant: ddpm_t1\?\)"):
        find_model("dpdm_t1", root)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("scan.nii.gz", "cold_diffusion_t1"),
        ("sub-1_T1w.nii.gz", "cold_diffusion_t1"),
        ("sub-1_FLAIR.nii.gz", "cold_diffusion_any"),
        ("patient_7_t2.nrrd", "cold_diffusion_any"),
        ("slice.png", "cold_diffusion_flair"),
    ],
)
def test_the_model_that_nobody_named_is_the_one_offered_first_for_the_sequence(tmp_path, file, model):
    # As the viewers, the page and `cohort` have it, not a model that finds less.
    for name in ("ddpm_t1", "cold_diffusion_t1", "cold_diffusion_any", "cold_diffusion_flair"):
        write_model(tmp_path / "model_weights" / name)
    assert find_model_for(file, AUTO, tmp_path).name == model
    assert find_model_for(file, "ddpm_t1", tmp_path).name == "ddpm_t1"


def test_a_lesser_model_in_place_of_the_one_offered_first_is_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("atlas_zscore_t1", "cold_diffusion_any"):
        folder = write_model(tmp_path / "model_weights" / name)
        config = {"kind": "anomaly", "method": name.rpartition("_")[0], "modality": name.rpartition("_")[2]}
        write_config(folder, config)
        seal(folder)
    assert find_model_for("x_flair.nii.gz", AUTO, tmp_path).name == "cold_diffusion_any"
    assert find_model_for("x_t1.nii.gz", "atlas_zscore_t1", tmp_path).name == "atlas_zscore_t1"
    assert not caplog.records
    told = []
    for file, about in (("x_t1.nii.gz", "for t1, "), ("x.nii.gz", "for scans of unknown sequence")):
        assert find_model_for(file, AUTO, tmp_path).name == "atlas_zscore_t1"
        assert find_model_for(file, AUTO, tmp_path, told.append).name == "atlas_zscore_t1"
        assert about in told[-1]
        assert "cold_diffusion_t1, is missing" in told[-1]
        assert "atlas_zscore_t1 is asked, a baseline" in told[-1]
    assert [record.getMessage() for record in caplog.records] == told
    assert [text.partition(", cold")[0] for text in stand_ins(calibrated(tmp_path))] == [
        "the model offered first for t1",
        "the model offered first for flair slices",
    ]


def test_predict_says_on_the_terminal_that_a_lesser_model_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_predict, "ROOT", tmp_path)

    def not_analysed(folder):
        raise CorruptModel("not analysed")

    monkeypatch.setattr(predict, "load_model", not_analysed)
    folder = write_model(tmp_path / "model_weights" / "intensity_t1")
    write_config(folder, {"kind": "anomaly", "method": "intensity", "modality": "t1"})
    (tmp_path / "scan_t1.nii.gz").write_bytes(b"")
    told = CliRunner().invoke(cli.app, ["predict", str(tmp_path / "scan_t1.nii.gz")]).stderr
    assert "warning: the model offered first for t1, cold_diffusion_t1, is missing" in told
    assert "intensity_t1 is asked, a baseline" in told


def test_a_sequence_without_a_model_asks_for_a_name(root):
    with pytest.raises(UnknownModel, match=r"'flair'.*--model NAME"):
        find_model_for("x_flair.nii.gz", AUTO, root)
