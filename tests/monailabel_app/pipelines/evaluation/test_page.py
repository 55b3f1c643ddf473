"""The page is made from the files that the other commands wrote, and from nothing else."""

import json

import pytest
from typer.testing import CliRunner

from monailabel_app.cli import app
from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.evaluation.page import read_pictures, write_page
from tests.monailabel_app.reports.page_record import evaluation_record, picture
from tests.monailabel_app.reports.test_evaluation_page import blind_spots, fairness


@pytest.fixture
def evaluation(tmp_path):
    """The folder that ``evaluate`` leaves: its record and one picture."""
    folder = tmp_path / "evaluation"
    (folder / "pictures").mkdir(parents=True)
    record = evaluation_record(models=2, sets=1)
    record["sets"][0]["examples"][0]["picture"] = "pictures/best.png"
    (folder / "evaluation.json").write_text(json.dumps(record))
    (folder / "pictures" / "best.png").write_bytes(picture())
    return folder


def test_the_command_joins_evaluation_blind_spots_and_fairness(evaluation, tmp_path):
    (tmp_path / "blind_spots.json").write_text(json.dumps(blind_spots()))
    (tmp_path / "fairness.json").write_text(json.dumps(fairness()))
    out = tmp_path / "new" / "page.html"
    options = ["report", "--evaluation", str(evaluation), "--selftest", str(tmp_path), "--fairness", str(tmp_path)]
    done = CliRunner().invoke(app, [*options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "Does not see lesions of 0.3 ml and smaller." in text
    assert "Parity is met at a share of 0.4." in text
    assert text.count("data:image/png;base64,") == 1
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_without_a_name_the_page_lies_beside_its_record(evaluation):
    done = CliRunner().invoke(app, ["report", "--evaluation", str(evaluation / "evaluation.json")])
    assert done.exit_code == 0, done.output
    assert (evaluation / "report.html").is_file()


def test_no_file_from_outside_the_folder_is_shown(evaluation):
    (evaluation.parent / "secret.png").write_bytes(picture())
    (evaluation / "text.png").write_bytes(b"no picture at all")
    (evaluation / "link.png").symlink_to(evaluation.parent / "secret.png")
    names = ["../secret.png", str(evaluation.parent / "secret.png"), "link.png", "text.png", "none.png", "", None, 7]
    record = {"sets": [{"examples": [{"picture": name} for name in [*names, "pictures/best.png"]]}]}
    assert list(read_pictures(record, evaluation)) == ["pictures/best.png"]


def test_numbers_that_are_no_json_are_missing_ones(evaluation):
    source = evaluation / "evaluation.json"
    record = json.loads(source.read_text())
    record["sets"][0]["rows"][0]["figures"]["pooled_ap"]["value"] = float("nan")
    source.write_text(json.dumps(record))
    assert ">nan" not in write_page(source, evaluation / "page.html").read_text().lower()


@pytest.mark.parametrize("content", ["{", "[]", '{"models": []}', '{"sets": 3}', '{"sets": [3]}', '{"sets": {}}'])
def test_other_files_are_refused_by_name(evaluation, content):
    (evaluation / "evaluation.json").write_text(content)
    with pytest.raises(EvaluationFailed, match="evaluation"):
        write_page(evaluation, evaluation / "page.html")
    assert not (evaluation / "page.html").exists()


def test_a_file_that_is_not_there_is_named(evaluation):
    with pytest.raises(EvaluationFailed, match="nothing"):
        write_page(evaluation, evaluation / "page.html", selftests=[evaluation / "nothing.json"])
