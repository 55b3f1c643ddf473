"""The commands ``models ...``, on an app folder of small models."""

import json

import pytest
import torch
from typer.testing import CliRunner

from monailabel_app import cli, cli_models
from monailabel_app.weights.model_folder import result_hash, seal, write_config, write_weights
from monailabel_app.weights.versions import current, new_staging, publish, serving_version

NAME = "ddpm_t1"
PATIENT = "a" * 64


def write_model(folder, value, training=None):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1", "config": {"levels": [value]}})
    write_weights(folder, {"w": torch.full((3,), value)})
    (folder / "calibration.json").write_text("{}")
    (folder / "card.md").write_text(f"# The card of {value}\n")
    if training is not None:
        (folder / "training.json").write_text(json.dumps(training))
    seal(folder)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """One shipped model with two published versions, the second serving."""
    write_model(tmp_path / "model_weights" / NAME, 0.5)
    for value in (1.0, 2.0):
        training = {
            "method": "ddpm",
            "site": "b" * 64,
            "train": [{"patient": PATIENT, "scan": PATIENT, "content": PATIENT}] * 7,
            "inherited": [PATIENT],
            "settings": {"seed": 3},
            "quality": {"mean_ap": value / 4, "mean_ap_interval": [0.1, 0.9]},
        }
        staged = write_model(new_staging(tmp_path, NAME), value, training)
        publish(tmp_path, NAME, staged, promote=True, reason=f"with {value}")
    monkeypatch.setattr(cli_models, "ROOT", tmp_path)
    return tmp_path


def run(*words, code=0, **kwargs):
    result = CliRunner().invoke(cli.app, ["models", *words], **kwargs)
    assert result.exit_code == code, result.output
    return result.output


def test_the_list_says_what_serves_how_good_it_is_and_what_else_there_is(root):
    line = run("list").splitlines()[-1]
    for word in (NAME, "0002", "ddpm", "t1", "0.500", "0001"):
        assert word in line
    [record] = json.loads(run("list", "--json"))
    assert record["version"] == "0002"
    assert [(v["version"], v["serves"], v["quality"]) for v in record["versions"]] == [
        ("0001", False, 0.25),
        ("0002", True, 0.5),
    ]
    assert record["hash"] == record["versions"][1]["hash"]


def test_a_model_that_cannot_serve_is_listed_with_the_reason(root):
    (root / "model" / NAME / "CURRENT").write_text("0009\n")
    assert "models promote ddpm_t1 VERSION" in run("list")
    [record] = json.loads(run("list", "--json"))
    assert record["version"] == "none"
    run("promote", NAME, "1")
    assert serving_version(root, NAME) == "0001"


def test_a_version_is_shown_with_training_history_and_card_but_without_patients(root):
    shown = run("show", f"{NAME}@1")
    for words in ("The card of 1.0", "with 1.0", "settings.seed", "quality.mean_ap"):
        assert words in shown
    record = json.loads(run("show", NAME, "--json"))
    assert (record["id"], record["serves"]) == (f"{NAME}@0002", True)
    assert record["config"]["config"]["levels"] == [2.0]
    assert (record["training"]["train"], record["training"]["inherited"]) == (7, 1)
    assert record["training"]["quality"] == {"mean_ap": 0.5, "mean_ap_interval": [0.1, 0.9]}
    assert len(record["history"]) == 2
    for text in (shown, json.dumps(record)):
        assert PATIENT not in text
        assert "b" * 64 not in text


def test_a_shipped_model_is_shown_too(root):
    record = json.loads(run("show", f"{NAME}@shipped", "--json"))
    assert (record["version"], record["serves"], record["training"]) == ("shipped", False, {})


def test_rolling_back_and_promoting_change_what_serves(root):
    assert "version 0001 serves" in run("rollback", NAME, "--reason", "too many findings")
    assert "version shipped serves" in run("rollback", NAME)
    assert current(root, NAME) == root / "model_weights" / NAME
    assert "PublishFailed" in run("rollback", NAME, code=2)
    assert "version 0002 serves" in run("promote", NAME, "2")
    assert "too many findings" in run("show", NAME)


def test_verify_looks_at_all_versions_and_fails_on_a_changed_one(root):
    assert run("verify").count("every file matches") == 3
    (root / "model" / NAME / "versions" / "0001" / "calibration.json").write_text("{ }")
    shown = run("verify", NAME, code=2)
    assert shown.count("every file matches") == 2
    assert f"{NAME}@0001: expected 0001/calibration.json" in shown
    run("verify", f"{NAME}@0002")
    run("verify", str(root / "model_weights" / NAME))
    assert "UnknownModel" in run("verify", "other", code=2)


def test_verify_also_finds_a_pointer_to_nothing(root):
    (root / "model" / NAME / "CURRENT").write_text("0009\n")
    assert "CURRENT" in run("verify", code=2)


def test_a_version_is_removed_when_confirmed_and_the_serving_one_never(root):
    run("remove", f"{NAME}@1", input="n\n", code=1)
    assert (root / "model" / NAME / "versions" / "0001").is_dir()
    run("remove", f"{NAME}@1", "--yes")
    assert not (root / "model" / NAME / "versions" / "0001").exists()
    assert "models rollback" in run("remove", f"{NAME}@0002", "--yes", code=2)
    assert "NAME@VERSION" in run("remove", NAME, "--yes", code=2)
    run("remove", NAME, "--all", "--yes")
    assert current(root, NAME) == root / "model_weights" / NAME
    assert not (root / "model" / NAME).exists()


def test_a_version_that_an_ensemble_combines_is_not_removed_before_it(root):
    folder = root / "model" / "both"
    write_model(folder, 0.0)
    digest = result_hash(root / "model" / NAME / "versions" / "0001")
    write_config(folder, {"kind": "anomaly", "method": "ensemble", "config": {"hashes": [digest, "c" * 64]}})
    seal(folder)
    assert "which both combines" in run("remove", f"{NAME}@1", "--yes", code=2)
    assert "which both combines" in run("remove", NAME, "--all", "--yes", code=2)
    run("remove", "both", "--all", "--yes")
    run("remove", f"{NAME}@1", "--yes")


@pytest.mark.parametrize(
    "words", [("show", "other"), ("show", f"{NAME}@7"), ("promote", NAME, "7"), ("remove", f"{NAME}@7", "--yes")]
)
def test_what_is_not_there_is_a_named_error(root, words):
    assert "UnknownModel: expected" in run(*words, code=2)
