"""A card says what was measured and whether it beats the baselines, and nothing that was not measured."""

import json
from pathlib import Path

import pytest

from monailabel_app.reports.shipped_card import shipped_card, verdict

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "description": "Restores healthy tissue, learnt from healthy T1 scans",
    "method": "cold_diffusion",
    "paper": "Somebody 2024",
    "modality": "t1",
    "erosion_mm": 2.0,
    "training_data": {"scans": 134, "name": "IXI", "licence": "CC BY-SA 3.0"},
    "training": {"steps": 100, "batch_size": 16, "minutes": 3.0},
}


def figure(value, interval=None):
    return {"value": value, "interval": interval}


def row(model, method, ap, **more):
    return {
        "model": model, "method": method, "score": "signed", "default": True, "calibration": "own", "cases": 60,
        "seconds_to_analyse": 1.5, "figures": {"pooled_ap": figure(ap, [ap - 0.05, ap + 0.05])}, "differences": {},
        **more,
    }  # fmt: skip


@pytest.fixture
def table():
    difference = {"reference": "atlas_zscore_t1", "pooled_ap": figure(0.2, [0.1, 0.3])}
    return {
        "title": "Implanted lesions",
        "rows": [
            row("mine_t1", "cold_diffusion", 0.5, differences={"atlas": difference}),
            row("atlas_zscore_t1", "atlas_zscore", 0.3),
            row("intensity_t1", "intensity", 0.6),
            row("other_t1", "ddpm", 0.4),
        ],
    }


@pytest.fixture
def calibration():
    return json.loads((ROOT / "model_weights" / "ddpm_t1" / "calibration.json").read_text())


def test_the_verdict_names_each_baseline_and_on_which_side_of_it_the_model_is(table):
    said = verdict("mine_t1", table)
    assert "AP 0.500" in said
    assert "above atlas_zscore_t1 (0.300; difference +0.200 [+0.100, +0.300])" in said
    assert "NOT above intensity_t1 (0.600)" in said
    assert "other_t1" not in said


def test_a_baseline_is_not_compared_with_itself(table):
    assert verdict("intensity_t1", table) == "AP 0.600: above atlas_zscore_t1 (0.300)."


def test_the_card_shows_the_model_between_the_baselines_with_intervals(table, calibration):
    card = shipped_card("mine_t1", CONFIG, calibration, "One.\n\nTwo\nlines.", [table], ["t1"])
    lines = [line for line in card.splitlines() if line.startswith("| ") and "signed | 0." in line]
    assert [line.split()[1] for line in lines] == ["intensity_t1", "mine_t1", "atlas_zscore_t1"]
    assert "0.500 [0.450, 0.550]" in lines[1]
    assert "Offered first for t1." in card
    assert "Two lines." in card
    assert "CC BY-SA 3.0" in card
    assert "Not a medical device" in card


def test_a_set_without_the_model_is_left_out_and_nothing_measured_is_said(calibration):
    card = shipped_card("mine_t1", CONFIG, calibration, "", [{"title": "FLAIR", "rows": []}])
    assert "FLAIR" not in card
    assert "Not measured yet." in card
