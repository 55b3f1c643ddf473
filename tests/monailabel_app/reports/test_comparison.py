"""The evaluation as text: what people read first, everything in the CSV, losers named."""

import csv
import io

import pytest

from monailabel_app.pipelines.evaluation.figures import evaluation_record
from monailabel_app.reports.comparison import comparison_csv, comparison_markdown, figure_text
from tests.monailabel_app.pipelines.evaluation.made_measurements import four_models, made


@pytest.fixture(scope="module")
def record():
    worse = made("worse_t1", "ddpm", 0.05, seed=8, split="test")
    failed = [{"model": "broken_t1", "set": "all", "error": "CorruptModel: expected weights"}]
    return evaluation_record([*four_models(split="test"), worse], failed=failed, resamples=100)


def lines_of(text, heading):
    part = text.split(heading)[1]
    return [line for line in part.splitlines() if line.startswith("| ")]


def test_the_first_table_has_a_line_per_model_with_intervals_and_the_answer(record):
    text = comparison_markdown(record)
    head, *lines = lines_of(text.split("### Operating")[0], "## Made up")
    assert "AP minus best baseline" in head
    assert lines[0].startswith("| good_t1 |")
    assert len(lines) == 5
    good = next(line for line in lines if "good_t1" in line)
    assert "**+0." in good
    assert "| yes |" in good
    worse = next(line for line in lines if "worse_t1" in line)
    assert "| NO |" in worse
    assert "`made_t1`, split test: 8 cases of 8 patients, 6 healthy scans." in text
    assert "- worse_t1: AP 0.0" in text
    assert "broken_t1 on all: CorruptModel" in text


def test_the_second_tables_show_every_operating_point_and_three_thresholds(record):
    text = comparison_markdown(record)
    points, thresholds = text.split("### Operating points and thresholds")[1].split("\n\n")[1:3]
    assert sum(line.startswith("| good_t1 | ") for line in points.splitlines()) == 4
    assert "volume bias, ml" in points
    assert "label-tuned (papers only)" in thresholds
    assert len(thresholds.splitlines()) == 7


def test_the_csv_holds_every_row_with_limits_points_and_p_values(record):
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(comparison_csv(record)))}
    assert len(rows) == 5
    told = record["sets"][0]["rows"][0]
    mine = rows[told["model"]]
    assert float(mine["pooled_ap"]) == told["figures"]["pooled_ap"]["value"]
    assert float(mine["pooled_ap_low"]) == told["figures"]["pooled_ap"]["interval"][0]
    assert float(mine["dice_bounded"]) == told["points"]["bounded"]["figures"]["dice"]["value"]
    assert float(mine["dice_at_label_tuned"]) == told["thresholds"]["label_tuned"]["dice"]["value"]
    p_value = told["differences"]["atlas"]["mean_case_ap"]["p_value"]
    assert float(mine["mean_case_ap_minus_atlas_p"]) == p_value
    assert mine["beats_atlas"] == "yes"
    assert rows["atlas_zscore_t1"]["beats_atlas"] == ""


def test_what_the_model_grid_loses_is_told(record):
    measurements = four_models()
    for measurement in measurements:
        (protocol,) = measurement.record["protocols"].values()
        first, second = protocol["cases"][:2]
        first |= {"lost_lesions": 2, "volume_ml": 0.0}
        second |= {"lost_lesions": 1}
    told = evaluation_record(measurements, resamples=10)
    assert told["sets"][0]["lost_on_grid"] == {"lesions": 3, "of": 16, "cases": 1}
    text = comparison_markdown(told)
    assert "Of 16 lesions 3 have no voxel on the model grid, 1 case no lesion left and so no Dice." in text
    assert "on the model grid," not in comparison_markdown(record)


def test_a_part_that_was_not_looked_at_is_told_even_where_it_is_all(record):
    assert "share of lesions looked at" not in comparison_markdown(record)
    measurement = made("blind_t1", "ddpm", 1.0)
    (protocol,) = measurement.record["protocols"].values()
    for case in protocol["cases"]:
        case["analysed_share"] = 0.0
    assert "share of lesions looked at" in comparison_markdown(evaluation_record([measurement], resamples=10))


def test_a_model_calibrated_on_the_set_is_marked():
    other = made("there", "ddpm", 2.0, calibration={"kind": "set", "id": None, "scans": 6})
    text = comparison_markdown(evaluation_record([other], resamples=5))
    assert "| there * |" in text
    assert "calibrated on the healthy scans of this set" in text


def test_a_figure_without_value_or_interval_says_so():
    assert figure_text(None, 2) == "-"
    assert figure_text({"value": None, "interval": None}, 2) == "-"
    assert figure_text({"value": 0.5, "interval": None}, 2) == "0.50"
    assert figure_text({"value": 0.5, "interval": [0.25, 0.75]}, 2, signed=True) == "+0.50 [+0.25, +0.75]"
