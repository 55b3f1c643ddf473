"""The card says what was measured, and says it when a baseline is not beaten."""

from monailabel_app.reports.model_card import beats_baselines, detection_table, model_card, operating_point_table

ROWS = [
    {"name": "intensity z, 3 mm", "average_precision": 0.10},
    {"name": "atlas z, 0 mm", "average_precision": 0.15},
    {"name": "atlas z, 5 mm", "average_precision": 0.25},
    {"name": "tiny signed standard", "average_precision": 0.20},
    {"name": "tiny l1 strong", "average_precision": 0.18},
]
REST = {"auroc": 0.9, "best_dice_oracle": 0.3, "mean_case_ap": 0.2, "mean_case_ap_interval": [0.1, 0.3], "cases": 9}
FULL = [{**row, **REST, "dice_at_balanced": None} for row in ROWS]
POINT = {"target_fpr": 0.01, "threshold": 1.5, "measured_fpr": 0.0101, "interval": [0.005, 0.02], "worst_fpr": 0.03}
CALIBRATION = {
    "healthy": {"scans": 20},
    "scores": {"signed": {"points": {"standard": {name: POINT for name in ("sensitive", "balanced", "specific")}}}},
}
CONFIG = {
    "description": "Reconstruction of slices",
    "method": "ddpm",
    "paper": "somebody 2022",
    "modality": "t1",
    "illumination_mm": 30.0,
    "erosion_mm": 2.0,
    "training_data": {"scans": 134, "name": "IXI", "licence": "CC BY-SA 3.0"},
    "training": {"steps": 10, "batch_size": 4, "minutes": 1.0},
    "config": {
        "levels": [0.9],
        "draws": 2,
        "chain_steps": 1,
        "diffusion": {
            "noise": "simplex",
            "prediction": "sample",
            "loss": "l1",
            "schedule": "cosine",
            "train_levels": [0.1, 0.97],
        },
    },
}


def test_a_baseline_that_is_not_beaten_is_named():
    sentence = beats_baselines(ROWS, "tiny")
    assert "NOT above atlas z (0.250)" in sentence
    assert "above intensity z (0.100)" in sentence
    assert "NOT above intensity z" not in sentence


def test_rows_are_sorted_by_average_precision():
    lines = detection_table(FULL).splitlines()[2:]
    assert lines[0].startswith("| atlas z, 5 mm")
    assert lines[-1].startswith("| intensity z, 3 mm")


def test_one_case_has_no_interval():
    table = detection_table([{**row, "cases": 1} for row in FULL])
    assert "0.200 (one case)" in table
    assert "[0.100, 0.300]" not in table
    assert "[0.100, 0.300]" in detection_table(FULL)


def test_thresholds_come_with_their_measured_rate_and_interval():
    assert "1.01 % [0.50, 2.00]" in operating_point_table(CALIBRATION)


def test_the_card_states_licence_data_limits_and_use():
    card = model_card("tiny", CONFIG, CALIBRATION, {"implanted": FULL})
    for words in ("CC BY-SA 3.0", "134 healthy scans", "Not a medical device", "## Limits", "atlas z, 5 mm"):
        assert words in card


def test_the_limits_state_on_how_few_scans_the_thresholds_rest():
    card = model_card("tiny", CONFIG, {**CALIBRATION, "healthy": {"scans": 7}}, {"implanted": FULL})
    assert "7 calibration scans: the smallest possible p-value of a scan is 1/8," in card


def test_weights_that_continue_an_earlier_run_say_so():
    training = {**CONFIG["training"], "continued_from": {"steps": 7804, "minutes": 72.0}}
    card = model_card("tiny", {**CONFIG, "training": training}, CALIBRATION, {"implanted": FULL})
    assert "continuing the averaged weights of 7804 steps" in card
    assert "continuing" not in model_card("tiny", CONFIG, CALIBRATION, {"implanted": FULL})
