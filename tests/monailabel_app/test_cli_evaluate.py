"""The command says what it can evaluate, and refuses in one line what it cannot."""

import pytest
from typer.testing import CliRunner

from monailabel_app import cli, cli_evaluate
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.evaluation import run as pipeline
from monailabel_app.pipelines.predict import list_model_folders

runner = CliRunner()


def test_the_described_sets_are_listed(tmp_path):
    result = runner.invoke(cli.app, ["evaluate", "--list", "--data-root", str(tmp_path)])
    assert result.exit_code == 0
    for name in cli_evaluate.DEVELOPMENT:
        assert name in result.output


def test_without_a_set_the_way_to_one_is_told():
    result = runner.invoke(cli.app, ["evaluate"])
    assert result.exit_code == 2
    assert "--list" in result.output


def test_an_unknown_set_is_told_in_one_line():
    result = runner.invoke(cli.app, ["evaluate", "--data", "mslub_t11"])
    assert result.exit_code == 2
    assert "mslub_t1" in result.output


def test_development_sets_that_are_not_there_are_all_named(tmp_path):
    result = runner.invoke(cli.app, ["evaluate", "--data", "dev", "--data-root", str(tmp_path)])
    assert result.exit_code == 2
    assert "ixi_implanted is left out" in result.output


def test_a_set_named_twice_is_measured_once_and_two_of_one_name_are_refused(tmp_path):
    description = cli_evaluate.ROOT / "tests" / "data" / "mslub_flair.yaml"
    sets, _, _ = cli_evaluate._data_sets(f"{description},{description}", tmp_path, None, None)
    assert len(sets) == 1
    other = tmp_path / description.name
    other.write_text(description.read_text() + f"root: {description.parent}\nid: other\n")
    with pytest.raises(InvalidSettings, match="two of the name mslub_flair"):
        cli_evaluate._data_sets(f"{description},{other}", tmp_path, None, None)


def test_the_command_is_recorded_without_folders(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "selftest", "--healthy", "/data/mueller/scans", "--quick"])
    assert cli_evaluate.as_typed() == "main.py selftest --healthy scans --quick"


def test_the_cache_is_emptied_of_what_the_command_put_there(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "a.safetensors").write_bytes(b"1" * 2_000_000)
    (tmp_path / "mine.txt").write_text("kept")
    result = runner.invoke(cli.app, ["evaluate", "--purge", "--cache", str(tmp_path)])
    assert result.exit_code == 0
    assert "freed 2 MB" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("models", "expected", "strict"),
    [
        ("default", {"cold_diffusion_any"}, False),
        ("cold_diffusion_flair,cold_diffusion_any", {"cold_diffusion_flair", "cold_diffusion_any"}, True),
        ("all", None, False),
    ],
)
def test_the_models_that_are_asked_for_are_passed_on(tmp_path, monkeypatch, models, expected, strict):
    asked = []

    def evaluate(request, out, cache, options, stage):
        asked.append((request, options))
        raise SystemExit(0)

    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    description = cli_evaluate.ROOT / "tests" / "data" / "mslub_flair.yaml"
    words = ["evaluate", "--data", str(description), "--models", models, "--workers", "3", "--out", str(tmp_path)]
    runner.invoke(cli.app, words)
    request, options = asked[0]
    folders = {folder.name for folder in request.models}
    assert folders == (expected or {folder.name for folder in list_model_folders(cli_evaluate.ROOT)})
    assert request.strict is strict
    assert options.workers == 3
    assert "intensity_flair" in request.known
    assert str(tmp_path) not in request.command
    assert request.sets[0].modality == "flair"
