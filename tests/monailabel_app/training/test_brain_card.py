"""The card says what was measured, and says so when that is below the goal."""

from monailabel_app.training.brain_card import brain_card

CONFIG = {"training": {"trained_steps": 1234, "seed": 9}}


def measured(mean, lowest):
    return {
        "ixi_t1_val": {"scans": 20, "mean": mean, "sd": 0.01, "min": lowest, "worst": "IXI000"},
        "stripped": {"pat_1 Flair": {"method": "already_stripped", "dice": 1.0, "dice_network_alone": 0.9}},
        "changed_geometry": {"spacing_4_mm": 0.93},
        "without_reference": {
            "TCGA_1 t1": {"method": "network", "volume_ml": 700, "warnings": ["cut"]},
            "TCGA_2 t1": {"error": "BrainNotFound: found 3 ml"},
            "studyforrest T1 (DICOM)": {"method": "network", "volume_ml": 1500, "warnings": []},
        },
    }


def test_card_carries_the_numbers_and_the_licence():
    text = brain_card(measured(0.9812, 0.9512), CONFIG)
    for part in ("0.981", "0.951", "IXI000", "1234 steps", "| pat 1 Flair | already_stripped | 1.000 | 0.900 |"):
        assert part in text
    assert "1 gave a mask of 700 to 700 ml, 1 of these" in text
    assert "1500 ml, no warning" in text
    assert "CC BY-SA 3.0" in text
    assert "Below its goal" not in text


def test_card_warns_when_the_goal_was_missed():
    assert "Below its goal" in brain_card(measured(0.96, 0.95), CONFIG)
    assert "Below its goal" in brain_card(measured(0.98, 0.93), CONFIG)
