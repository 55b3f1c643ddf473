import json

import pytest
from typer.testing import CliRunner

from monailabel_app.cli import app
from monailabel_app.io.healthy_list import read_healthy_list


def run(*arguments):
    return CliRunner().invoke(app, ["prototypes", *map(str, arguments)])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Prepared scans and embeddings, made by the first command that needs them."""
    return tmp_path_factory.mktemp("work")


def test_a_folder_gives_a_table_with_file_names_and_a_list(tmp_path, studies_dir, work):
    result = run("--data", studies_dir, "--k", 1, "--work", work, "--workers", 0, "--output", tmp_path / "list.csv")
    assert result.exit_code == 0, result.output
    assert "ixi_healthy.nii.gz" in result.output
    assert "1 of 2 scans proposed" in result.output
    rows = read_healthy_list(tmp_path / "list.csv").rows
    assert sorted(row.name for row in rows) == ["ixi_healthy", "ixi_lesion"]
    assert [row.healthy for row in rows] == [True, None]


def test_json_holds_the_same_ranking(studies_dir, work):
    result = run("--data", studies_dir, "--k", 1, "--work", work, "--workers", 0, "--json")
    report = json.loads(result.stdout)
    assert [row["proposed"] for row in report["rows"]] == [True, False]
    assert report["encoder"] == "ddpm_t1"


def test_neither_folder_nor_cache_is_an_error_that_says_so():
    result = run("--k", 3)
    assert result.exit_code == 2
    assert "--data FOLDER or --cache FILE" in result.output


def test_a_folder_without_scans_is_an_error(tmp_path):
    result = run("--data", tmp_path)
    assert result.exit_code == 2
    assert "found none" in result.output
