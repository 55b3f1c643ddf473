import csv
import io

import pytest

from monailabel_app.reports.fairness_table import (
    attribute_sentences,
    fairness_csv,
    fairness_markdown,
    fairness_section,
    group_title,
)


def figure(value, low=None, high=None):
    return {"value": value, "interval": None if low is None else [low, high]}


def group(name, title, patients, volume, auroc):
    figures = {
        "false_ml_balanced": figure(volume, volume - 2, volume + 2),
        "sauroc": figure(auroc, auroc - 0.05, auroc + 0.05),
        "false_ml_specific": figure(0.123),
    }
    return {
        "group": name,
        "title": title,
        "scans": patients,
        "patients": patients,
        "compared": True,
        "figures": figures,
    }


def sex(p_corrected=0.4, exact=False, assignments=10_000):
    return {
        "name": "sex",
        "of": ["sex"],
        "intersection": False,
        "groups": [group("F", "women", 14, 8.7, 0.91), group("M", "men", 11, 17.9, 0.84)],
        "not_reported": [{"group": "unknown", "title": "unknown", "scans": 2, "patients": 2}],
        "test": {
            "figure": "false_ml_balanced", "p_value": p_corrected / 2, "p_corrected": p_corrected, "tests": 2,
            "exact": exact, "assignments": assignments, "left_out": 0,
        },
        "gaps": [
            {"figure": "false_ml_balanced", "high": "M", "low": "F", "difference": figure(9.2, -3, 20)},
            {"figure": "sauroc", "high": "F", "low": "M", "difference": figure(0.07, -0.1, 0.2)},
        ],
        "resolution": {
            "figure": "false_ml_balanced", "groups": ["F", "M"], "patients": [14, 11], "difference": 23.6,
            "power": 0.8, "level": 0.025,
        },
    }  # fmt: skip


def record(**changes):
    attribute = sex()
    attribute["sentences"] = attribute_sentences(attribute, 10)
    crossed = {**attribute, "name": "sex x age", "intersection": True, "sentences": ["An intersection."]}
    names = ["false_ml_balanced", "sauroc", "false_ml_specific"]
    entry = {
        "model": "ddpm_t1", "set": "ixi_t1", "split": "val", "kind": "held-out", "scans": 25, "patients": 25,
        "positives": 40, "positive_patients": 20, "figures": names, "tested": names[0],
        "overall": attribute["groups"][0]["figures"], "attributes": [attribute, crossed], **changes,
    }  # fmt: skip
    return {"options": {"min_group": 10, "positives": "scans.csv"}, "models": [entry], "laws": []}


@pytest.mark.parametrize(
    ("attributes", "name", "title"),
    [
        (["sex"], "F", "women"),
        (["age"], ">=60", "aged 60 and over"),
        (["sex", "age"], "M, 40-59", "men aged 40 to 59"),
        (["site"], "Leeds, ward 2", "site Leeds, ward 2"),
        (["sex"], "unknown", "unknown"),
    ],
)
def test_groups_have_titles_in_words(attributes, name, title):
    assert group_title(attributes, name) == title


def test_sentences_say_what_could_not_have_been_seen():
    first, second, third, last = attribute_sentences(sex(), 10)
    assert "8.7 [6.7, 10.7] in women (14) and 17.9 [15.9, 19.9] in men (11); it shows no clear difference" in first
    assert "p = 0.200, 0.400 after correction for 2 comparisons" in first
    assert second.startswith("With 14 women and 11 men, a true difference below about 24 ml would probably not be seen")
    assert "does not show that they are treated alike" in second
    assert "sAUROC is lower for healthy men than for women by 0.070 [-0.100, 0.200]" in third
    assert "may be chance" in third
    assert last == "Not reported, fewer than 10 people: unknown (2)."


def test_a_difference_that_is_found_is_called_one():
    sentences = attribute_sentences(sex(p_corrected=0.01), 10)
    assert "it differs between the groups" in sentences[0]
    assert not any("treated alike" in sentence for sentence in sentences)


def test_groups_too_small_for_any_significance_say_so():
    assert any("however large" in s for s in attribute_sentences(sex(exact=True, assignments=20), 10))
    assert not any("however large" in s for s in attribute_sentences(sex(exact=True, assignments=5000), 10))


def test_a_card_gets_its_models_tables_without_the_intersections_sentences():
    section = fairness_section(record(), "ddpm_t1")
    assert section.startswith("## Fairness")
    assert "| women | 14 | 8.7 [6.7, 10.7] | 0.910 [0.860, 0.960] |" in section
    assert "specific" not in section
    assert "An intersection." not in section
    assert "Exploratory" not in section
    assert fairness_section(record(), "other") == ""


def test_the_whole_report_shows_every_figure_and_warns_of_scans_that_trained():
    text = fairness_markdown(record(kind="exploratory"))
    assert "healthy false volume at specific, ml" in text
    assert "An intersection." in text
    assert "**Exploratory**" in text


def test_the_table_for_spreadsheets_has_a_line_per_group():
    lines = list(csv.DictReader(io.StringIO(fairness_csv(record()))))
    assert [line["group"] for line in lines[:4]] == ["all", "F", "M", "unknown"]
    assert (lines[2]["false_ml_balanced"], lines[2]["false_ml_balanced_low"], lines[2]["p_corrected"]) == (
        "17.9", "15.899999999999999", "0.4",
    )  # fmt: skip
    assert (lines[3]["reported"], lines[3]["false_ml_balanced"]) == ("0", "")
