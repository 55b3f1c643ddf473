import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from monailabel_app.cli import app
from monailabel_app.errors import EvaluationFailed, InvalidSettings
from monailabel_app.pipelines.evaluation.fairness import FairnessOptions, fairness, write_fairness
from monailabel_app.reports.fairness_table import fairness_section

QUICK = {"resamples": 200, "permutations": 500}
COLUMNS = (
    "model", "set", "split", "id", "patient", "healthy", "scan_score", "false_ml_specific", "false_ml_balanced", "age",
    "sex",
)  # fmt: skip


def people(count=60, seed=0):
    """Healthy people; women are marked more."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        sex = "F" if i % 2 else "M"
        volume = draw.gamma(4, 2) + (12 if sex == "F" else 0)
        rows.append(
            {
                "model": "ddpm",
                "set": "ixi",
                "split": "val",
                "id": f"s{i}",
                "patient": f"p{i}",
                "healthy": 1,
                "scan_score": round(volume / 10, 4),
                "false_ml_specific": round(volume / 20, 4),
                "false_ml_balanced": round(volume, 4),
                "age": 20 + i % 3 * 22,
                "sex": sex,
            }
        )
    return rows


def ill(count=20, model="ddpm"):
    return [
        {"model": model, "set": "ixi", "split": "val", "id": f"c{i}", "patient": f"c{i}", "healthy": 0,
         "scan_score": 2 + i / 10}
        for i in range(count)
    ]  # fmt: skip


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "scans.csv", people() + ill())


def attribute(entry, name):
    return next(found for found in entry["attributes"] if found["name"] == name)


def test_a_difference_between_groups_is_found_with_its_size(table):
    (entry,) = fairness(table, FairnessOptions(**QUICK))["models"]
    assert entry["tested"] == "false_ml_balanced"
    assert (entry["patients"], entry["positives"], entry["kind"]) == (60, 20, "held-out")
    assert [found["name"] for found in entry["attributes"]] == ["sex", "age", "sex x age"]
    sex = attribute(entry, "sex")
    women = [row["false_ml_balanced"] for row in people() if row["sex"] == "F"]
    found = {group["group"]: group["figures"]["false_ml_balanced"] for group in sex["groups"]}
    assert found["F"]["value"] == pytest.approx(np.mean(women))
    assert found["F"]["interval"][0] < np.mean(women) < found["F"]["interval"][1]
    assert sex["test"]["p_corrected"] < 0.05
    assert sex["test"]["tests"] == 3
    gap = sex["gaps"][0]
    assert (gap["high"], gap["low"]) == ("F", "M")
    assert gap["difference"]["interval"][0] > 0
    assert attribute(entry, "age")["test"]["p_corrected"] > 0.05
    assert sex["resolution"]["difference"] < 12
    assert "differs between the groups" in sex["sentences"][0]


def test_the_subgroup_auroc_counts_everybodys_anomalies_against_the_group(table):
    (entry,) = fairness(table, FairnessOptions(**QUICK))["models"]
    scores = [row["scan_score"] for row in people() if row["sex"] == "M"]
    wins = np.mean([[a > b for b in scores] for a in (row["scan_score"] for row in ill())])
    men = next(group for group in attribute(entry, "sex")["groups"] if group["group"] == "M")
    assert men["figures"]["sauroc"]["value"] == pytest.approx(wins)
    threshold = sorted(row["scan_score"] for row in ill())[1]  # 19 of 20 lie at or above it
    assert entry["threshold"] == threshold
    assert men["figures"]["fpr_at_tpr95"]["value"] == pytest.approx(np.mean(np.array(scores) >= threshold))


def test_small_groups_are_listed_without_figures_and_unknown_ones_take_no_part(tmp_path):
    rows = people()
    for row in rows[:12]:
        row["sex"] = ""
    for row in rows[12:15]:
        row["sex"] = "X"
    (entry,) = fairness(write(tmp_path / "t.csv", rows), FairnessOptions(by=("sex",), **QUICK))["models"]
    sex = attribute(entry, "sex")
    assert [(g["group"], g["patients"]) for g in sex["not_reported"]] == [("X", 3)]
    assert [(g["group"], g["compared"]) for g in sex["groups"]] == [("F", True), ("M", True), ("unknown", False)]
    assert sex["groups"][-1]["patients"] == 12
    assert {sex["gaps"][0]["high"], sex["gaps"][0]["low"]} == {"F", "M"}
    assert "Not reported" in sex["sentences"][-1]


def test_sets_without_any_attribute_are_left_out_by_name(tmp_path):
    rows = people() + [{**row, "set": "soop", "age": "", "sex": "unknown"} for row in people()]
    record = fairness(write(tmp_path / "t.csv", rows), FairnessOptions(**QUICK))
    assert [entry["set"] for entry in record["models"]] == ["ixi"]
    assert record["left_out"] == ["soop"]


def test_a_single_group_of_sufficient_size_is_no_sign_of_equality(tmp_path):
    rows = [row for row in people() if row["sex"] == "F"] + people()[:4:2]
    (entry,) = fairness(write(tmp_path / "t.csv", rows), FairnessOptions(by=("sex",), **QUICK))["models"]
    sex = attribute(entry, "sex")
    assert sex["test"] is None
    assert sex["gaps"] == []
    assert "no sign of equality" in sex["sentences"][0]
    assert entry["positives"] == 0
    assert "sauroc" not in entry["figures"]


def test_spellings_of_a_sex_are_one_group(tmp_path):
    rows = people()
    for row in rows[:20]:
        row["sex"] = {"F": "female", "M": "Male"}[row["sex"]]
    (entry,) = fairness(write(tmp_path / "t.csv", rows), FairnessOptions(by=("sex",), **QUICK))["models"]
    assert [g["group"] for g in attribute(entry, "sex")["groups"]] == ["F", "M"]


def test_scans_that_trained_the_networks_are_called_exploratory(tmp_path):
    rows = people()
    for row in rows[::2]:
        row["split"] = "train"
    path = write(tmp_path / "t.csv", rows)
    by_split = fairness(path, FairnessOptions(by=("age",), **QUICK))["models"]
    assert {entry["split"]: entry["kind"] for entry in by_split} == {"train": "exploratory", "val": "held-out"}
    record = fairness(path, FairnessOptions(by=("age",), together=True, **QUICK))
    (joined,) = record["models"]
    assert (joined["kind"], joined["patients"]) == ("exploratory", 60)
    assert "**Exploratory**" in fairness_section(record, "ddpm")


def test_positives_of_another_table_belong_to_their_model(tmp_path):
    path = write(tmp_path / "t.csv", people() + [{**row, "model": "atlas"} for row in people()])
    other = write(tmp_path / "ill.csv", ill(8) + ill(5, "atlas"))
    found = fairness(path, FairnessOptions(by=("sex",), **QUICK), positives=str(other))["models"]
    assert {entry["model"]: entry["positives"] for entry in found} == {"ddpm": 8, "atlas": 5}
    nobody = write(tmp_path / "nobody.csv", ill(5, "vae"))
    with pytest.raises(EvaluationFailed, match="of the same models"):
        fairness(path, FairnessOptions(by=("sex",), **QUICK), positives=str(nobody))


def test_a_column_may_name_the_positives(tmp_path):
    rows = [{"patient": i, "scan_score": i / 7, "tumour": int(i > 40), "sex": "MF"[i % 2]} for i in range(60)]
    path = write(tmp_path / "t.csv", rows, ("patient", "scan_score", "tumour", "sex"))
    (entry,) = fairness(path, FairnessOptions(**QUICK), positives="tumour")["models"]
    assert (entry["patients"], entry["positives"]) == (41, 19)
    assert entry["tested"] == "scan_score"
    assert entry["overall"]["sauroc"]["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": "old"}, "line 3: expected a number in age, got 'old'"),
        ({"false_ml_balanced": ""}, "line 3: expected a number in false_ml_balanced"),
        ({"id": "s0"}, "line 3: expected every healthy scan of ddpm once"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, message):
    rows = people()
    rows[1] |= change
    with pytest.raises(EvaluationFailed, match=message):
        fairness(write(tmp_path / "t.csv", rows), FairnessOptions(**QUICK))


def test_impossible_options_are_refused(table, tmp_path):
    with pytest.raises(EvaluationFailed, match="columns site to group"):
        fairness(table, FairnessOptions(by=("sex", "site")))
    with pytest.raises(InvalidSettings, match="groups of 3 patients"):
        fairness(table, FairnessOptions(min_group=2))
    with pytest.raises(InvalidSettings, match="specific, balanced, got 'bounded'"):
        fairness(table, FairnessOptions(point="bounded"))
    with pytest.raises(EvaluationFailed, match="healthy scans with sex or age"):
        fairness(write(tmp_path / "ill.csv", ill()), FairnessOptions())


def mixed_models():
    """sAUROC of men rises with their share in the training data, that of women falls: equal at 0.3."""
    rows, mixtures = [], []
    for number, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        name = f"m{number}"
        mixtures.append({"model": name, "attribute": "sex", "group": "M", "share": share})
        rows += ill(20, name)
        for i in range(60):
            men = i % 2 == 0
            shift = 0.4 * (share - 0.3) * (1 if men else -1)
            score = 3 + (i // 2 - 15) / 20 - shift
            rows.append(
                {**people(1)[0], "model": name, "id": f"s{i}", "patient": f"p{i}", "sex": "M" if men else "F",
                 "scan_score": score}
            )  # fmt: skip
    return rows, mixtures


def test_the_law_over_mixtures_gives_the_share_at_which_groups_are_equal(tmp_path):
    rows, mixtures = mixed_models()
    path = write(tmp_path / "t.csv", rows)
    shares = write(tmp_path / "m.csv", mixtures, ("model", "attribute", "group", "share"))
    record = fairness(path, FairnessOptions(by=("sex",), **QUICK), mixtures=shares)
    (law,) = record["laws"]
    assert (law["share_of"], law["figure"], law["set"], len(law["models"])) == ("M", "sauroc", "ixi", 5)
    slopes = {group["group"]: group["slope"]["interval"] for group in law["groups"]}
    assert slopes["M"][0] > 0 > slopes["F"][1]
    (equal,) = law["equal_shares"]
    assert equal["value"] == pytest.approx(0.3, abs=0.03)
    assert any(f"meet at a share of {equal['value']:.0%} men" in sentence for sentence in law["sentences"])
    mixtures[1]["share"] = 25
    with pytest.raises(EvaluationFailed, match=r"line 3: expected a share in \[0, 1\]"):
        fairness(path, FairnessOptions(by=("sex",), **QUICK), mixtures=write(shares, mixtures, tuple(mixtures[0])))
    few = write(shares, mixtures[2:4], tuple(mixtures[0]))
    with pytest.raises(EvaluationFailed, match="three models"):
        fairness(path, FairnessOptions(by=("sex",), **QUICK), mixtures=few)


def test_several_tables_are_read_together(tmp_path):
    first = write(tmp_path / "a.csv", people() + ill())
    everybody = [{**row, "set": "all", "split": "train+val"} for row in people()]
    second = write(tmp_path / "b.csv", everybody, tuple(reversed(COLUMNS)))
    record = fairness([first, second], FairnessOptions(**QUICK))
    found = {entry["set"]: (entry["kind"], entry["positives"]) for entry in record["models"]}
    assert found == {"ixi": ("held-out", 20), "all": ("exploratory", 0)}
    assert record["made"]["table"] == "a.csv, b.csv"
    other = write(
        tmp_path / "c.csv", [{"patient": "x", "healthy": 1, "scan_score": 1}], ("patient", "healthy", "scan_score")
    )
    with pytest.raises(EvaluationFailed, match="sex or age or site"):
        fairness([first, other], FairnessOptions(**QUICK))


def test_what_is_written_can_be_read_again(table, tmp_path):
    record = fairness(table, FairnessOptions(min_group=3, **QUICK))
    paths = write_fairness(record, tmp_path / "out")
    assert [path.name for path in paths] == ["fairness.json", "fairness.csv", "fairness.md"]
    assert json.loads(paths[0].read_text()) == record
    with paths[1].open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    women = next(line for line in lines if (line["attribute"], line["group"]) == ("sex", "F"))
    kept = next(g for g in attribute(record["models"][0], "sex")["groups"] if g["group"] == "F")
    assert float(women["false_ml_balanced"]) == kept["figures"]["false_ml_balanced"]["value"]
    assert float(women["sauroc_low"]) == kept["figures"]["sauroc"]["interval"][0]
    assert "p17" not in paths[0].read_text()  # groups only, no person


def test_the_command_prints_tables_and_sentences(table, tmp_path):
    options = ["--table", str(table), "--by", "sex", "--resamples", "200", "--permutations", "500"]
    result = CliRunner().invoke(app, ["fairness", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "| women | 30 |" in result.output
    assert "By sex: healthy false volume at balanced, in ml, is" in result.output
    assert (tmp_path / "out" / "fairness.json").is_file()
    refused = CliRunner().invoke(app, ["fairness", "--table", str(table), "--by", "site"])
    assert refused.exit_code == 2
    assert "expected the columns site" in refused.output
