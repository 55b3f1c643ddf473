"""What is said of a model: a baseline that is not beaten is named, and little data decides nothing."""

import json

import pytest

from monailabel_app.pipelines.evaluation.figures import evaluation_record
from monailabel_app.reports.verdicts import measured_record, row_of, verdict_sentence
from tests.monailabel_app.pipelines.evaluation.made_measurements import four_models, made

HASH = "a" * 64


@pytest.fixture(scope="module")
def evaluation():
    worse = made("worse_t1", "ddpm", 0.05, seed=8)
    volumes = [*four_models(), worse]
    few = four_models(set_name="few_flair", modality="flair", cases=1, healthy=0)
    return evaluation_record(volumes + few, resamples=100)


SELFTEST = {
    "model": {"id": "good_t1"},
    "data": {"name": "mine", "scans": 6},
    "default_point": "balanced",
    "made": {"time": "2026-01-01"},
    "sentences": ["Does not see lesions of 0.3 ml."],
}
FAIRNESS = {
    "options": {"min_group": 5},
    "models": [
        {
            "model": "good_t1",
            "set": "made_t1",
            "split": "val",
            "kind": "held-out",
            "scans": 20,
            "attributes": [
                {"intersection": False, "sentences": ["By sex: no clear difference."]},
                {"intersection": True, "sentences": ["By sex and age: something."]},
            ],
        }
    ],
}


def test_a_model_that_beats_both_baselines_is_said_to_and_few_patients_decide_nothing(evaluation):
    measured = measured_record("good_t1", HASH, evaluation)
    assert [entry["answer"] for entry in measured["sequences"]] == ["yes", "undecided"]
    assert verdict_sentence(measured).startswith("T1: beats both simple baselines (made_t1: AP 0.")
    assert "FLAIR: not shown to beat simple baselines (few_flair: AP 0." in verdict_sentence(measured)
    assert len(measured["warnings"]) == 1
    assert "1 patient only" in measured["warnings"][0]
    assert measured["sets"][0]["baselines"]["atlas"]["beats"] == "yes"
    assert measured["sets"][0]["figures"]["dice"]["interval"]
    assert json.loads(json.dumps(measured)) == measured


def test_a_baseline_that_is_not_beaten_is_named_with_the_numbers(evaluation):
    measured = measured_record("worse_t1", HASH, evaluation)
    assert "T1: does NOT beat the intensity and atlas baselines" in verdict_sentence(measured)
    warning = measured["warnings"][0]
    assert "does NOT beat the intensity baseline and the atlas z-score baseline" in warning
    assert "against atlas_zscore_t1" in warning
    equal = measured_record("ddpm_t1", HASH, evaluation)
    assert "T1: not shown to beat the atlas baseline" in verdict_sentence(equal)
    assert equal["sequences"][0]["baselines"] == ["atlas"]


def test_one_lost_set_decides_against_a_model_that_wins_on_another(evaluation):
    beaten = [made("good_t1", "ddpm", 0.05, seed=8, set_name="other_t1"), *four_models(set_name="other_t1")[1:3]]
    lost = evaluation_record(beaten, resamples=50)
    both = {**evaluation, "sets": [*evaluation["sets"], *lost["sets"]]}
    assert measured_record("good_t1", HASH, both)["sequences"][0]["answer"] == "no"


def test_a_sentence_fits_into_a_description(evaluation):
    for model in ("good_t1", "worse_t1", "ddpm_t1"):
        assert len(verdict_sentence(measured_record(model, HASH, evaluation))) < 200
    baseline = measured_record("atlas_zscore_t1", HASH, evaluation)
    assert verdict_sentence(baseline) == "A baseline that other models have to beat."
    assert baseline["warnings"] == []
    assert verdict_sentence(None) == verdict_sentence(measured_record("unknown", HASH, evaluation)) == ""


def test_what_was_measured_with_other_weights_is_left_out(evaluation):
    changed = json.loads(json.dumps(evaluation))
    for table in changed["sets"]:
        for row in table["rows"]:
            row["result_hash"] = "b" * 64
    assert measured_record("good_t1", HASH, changed)["sets"] == []
    assert len(measured_record("good_t1", "b" * 64, changed)["sets"]) == 2
    for about in ({"result_hash": "b" * 64}, {"result_hash": HASH, "calibration": {"kind": "site"}}):
        other = {**SELFTEST, "model": {"id": "good_t1", **about}}
        assert measured_record("good_t1", HASH, evaluation, selftests=[other])["blind_spots"] == []


def test_blind_spots_and_fairness_are_those_of_the_model(evaluation):
    measured = measured_record("good_t1", HASH, evaluation, selftests=[SELFTEST], fairness=FAIRNESS)
    assert measured["blind_spots"][0]["sentences"] == SELFTEST["sentences"]
    assert measured["fairness"]["sets"][0]["sentences"] == ["By sex: no clear difference."]
    other = measured_record("worse_t1", HASH, evaluation, selftests=[SELFTEST], fairness=FAIRNESS)
    assert other["blind_spots"] == []
    assert other["fairness"] is None


def test_the_row_of_a_model_is_of_its_own_calibration():
    rows = [
        {"model": "m", "default": True, "calibration": {"kind": "set"}},
        {"model": "m", "default": True, "calibration": {"kind": "own"}},
        {"model": "m", "default": False, "calibration": {"kind": "own"}},
    ]
    assert row_of("m", {"rows": rows}) is rows[1]
    assert row_of("m", {"rows": rows[:1]}) is rows[0]
    assert row_of("m", {"rows": [{**rows[1], "calibration": {"kind": "site"}}]}) is None
    assert row_of("other", {"rows": rows}) is None
