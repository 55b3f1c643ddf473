"""A card says first what the model is not better than, then what was measured, and nothing that was not."""

import json
from pathlib import Path

import pytest

from monailabel_app.pipelines.evaluation.figures import evaluation_record
from monailabel_app.reports.shipped_card import shipped_card
from monailabel_app.reports.verdicts import measured_record
from tests.monailabel_app.pipelines.evaluation.made_measurements import four_models, made

ROOT = Path(__file__).resolve().parents[3]
HASH = "a" * 64
CONFIG = {
    "description": "Restores healthy tissue, learnt from healthy T1 scans",
    "method": "cold_diffusion",
    "paper": "Somebody 2024",
    "modality": "t1",
    "erosion_mm": 2.0,
    "training_data": {"scans": 134, "name": "IXI", "licence": "CC BY-SA 3.0"},
    "training": {"steps": 100, "batch_size": 16, "minutes": 3.0},
}
SELFTEST = {
    "model": {"id": "good_t1"},
    "data": {"name": "mine", "scans": 6},
    "default_point": "balanced",
    "sentences": ["Does not see lesions of 0.3 ml."],
}


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_record([*four_models(), made("worse_t1", "ddpm", 0.05, seed=8)], resamples=100)


@pytest.fixture(scope="module")
def calibration():
    return json.loads((ROOT / "model_weights" / "ddpm_t1" / "calibration.json").read_text())


@pytest.fixture
def card_of(evaluation, calibration):
    def card(model, tables=None, **parts):
        record = evaluation if tables is None else {**evaluation, "sets": tables}
        measured = measured_record(model, HASH, record, selftests=[SELFTEST], **parts)
        sets = record["sets"]
        return shipped_card(model, CONFIG, calibration, "One.\n\nTwo\nlines.", measured, sets, ["t1"], **parts)

    return card


def test_a_model_that_loses_to_a_baseline_says_so_before_anything_else(card_of):
    lines = card_of("worse_t1").splitlines()
    assert lines[0] == "# worse_t1"
    assert "Not better than a simple baseline" in lines[2]
    assert "does NOT beat the intensity baseline" in lines[4]
    assert "Not better than" not in card_of("good_t1")


def test_the_card_shows_the_model_between_its_baselines_with_intervals(card_of, evaluation):
    card = card_of("good_t1")
    table = [line for line in card.splitlines() if line.startswith("| ") and "| signed | 0." in line]
    assert [line.split()[1] for line in table] == ["good_t1", "atlas_zscore_t1", "intensity_t1"]
    figure = evaluation["sets"][0]["rows"][0]["figures"]["pooled_ap"]
    assert "{:.3f} [{:.3f}, {:.3f}]".format(figure["value"], *figure["interval"]) in table[0]
    assert "AP 0.743 (chance 0.025): above intensity_t1" in card
    for words in ("Offered first for t1.", "Two lines.", "CC BY-SA 3.0", "Not a medical device", "RoDeO"):
        assert words in card


def test_blind_spots_are_those_of_the_model(card_of):
    assert "- Does not see lesions of 0.3 ml." in card_of("good_t1")
    assert "## Blind spots" not in card_of("ddpm_t1")


def test_a_baseline_is_not_compared_with_itself(card_of):
    card = card_of("intensity_t1")
    assert "NOT above atlas_zscore_t1" in card
    assert card.count("| intensity_t1 |") == 1


def test_a_set_without_the_model_is_left_out_and_nothing_measured_is_said(card_of):
    card = card_of("good_t1", tables=[{"name": "far", "title": "Far away", "rows": []}])
    assert "Far away" not in card
    assert "Not measured yet." in card
