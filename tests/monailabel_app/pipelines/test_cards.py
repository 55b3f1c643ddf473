"""`weights cards` writes what was measured beside every shipped model, and changes no result."""

import json
import shutil
from pathlib import Path

import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.cards import write_cards
from monailabel_app.pipelines.evaluation.figures import evaluation_record
from monailabel_app.reports.verdicts import verdict_sentence
from monailabel_app.weights.measured_file import read_measured
from monailabel_app.weights.model_folder import result_hash, verify
from tests.monailabel_app.pipelines.evaluation.made_measurements import made

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights"
NAMES = ("intensity_t1", "atlas_zscore_t1", "ddpm_t1")


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        if not (SHIPPED / name / "calibration.json").is_file():
            pytest.skip("no trained models in model_weights/")
        shutil.copytree(SHIPPED / name, tmp_path / "model_weights" / name)
    return tmp_path


@pytest.fixture
def evaluation(tmp_path):
    measurements = [
        made("intensity_t1", "intensity", 0.6, seed=2),
        made("atlas_zscore_t1", "atlas_zscore", 1.2, seed=3),
        made("ddpm_t1", "ddpm", 0.05, seed=4),
    ]
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation_record(measurements, resamples=50)))
    return path


def test_every_model_there_gets_a_card_and_its_measurements_and_stays_the_same_model(root, evaluation):
    folders = {name: root / "model_weights" / name for name in NAMES}
    before = {name: result_hash(folder) for name, folder in folders.items()}
    lines = list(write_cards(root, evaluation))
    assert sorted(line.split(":")[0] for line in lines) == sorted(NAMES)
    for name, folder in folders.items():
        verify(folder)
        assert result_hash(folder) == before[name]
        assert read_measured(folder)["model"] == name
    assert "does NOT beat" in (folders["ddpm_t1"] / "card.md").read_text()[:600]
    assert "T1: does NOT beat the" in verdict_sentence(read_measured(folders["ddpm_t1"]))


def test_a_file_that_is_no_evaluation_is_named_and_nothing_is_written(root, evaluation, tmp_path):
    card = root / "model_weights" / "ddpm_t1" / "card.md"
    before = card.read_text()
    with pytest.raises(EvaluationFailed, match=r"missing.json as `main.py evaluate`"):
        list(write_cards(root, tmp_path / "missing.json"))
    (tmp_path / "spots.json").write_text("{}")
    with pytest.raises(EvaluationFailed, match=r"spots.json as `main.py selftest`"):
        list(write_cards(root, evaluation, selftests=[tmp_path / "spots.json"]))
    assert card.read_text() == before


def test_a_file_may_be_given_by_its_folder(root, evaluation):
    assert list(write_cards(root, evaluation.parent)) == list(write_cards(root, evaluation))
