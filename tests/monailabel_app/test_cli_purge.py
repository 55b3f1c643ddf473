"""The command says what would go, removes it, and notes it without a name."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from monailabel_app import cli, cli_purge
from monailabel_app.pipelines import retention


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_purge, "ROOT", tmp_path)
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(tmp_path / "home/sessions"))
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "home/dicom"))
    monkeypatch.delenv("ANOMALY_AUDIT", raising=False)
    (tmp_path / "tmp").mkdir()
    usual = retention.Folders.usual

    def there(app, studies=None):
        found = usual(app, studies)
        return retention.replace(found, temporary=tmp_path / "tmp")

    monkeypatch.setattr(retention.Folders, "usual", there)
    return tmp_path


def old(path, days=30.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"brain")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def call(*arguments):
    return CliRunner().invoke(cli.app, ["purge", *arguments])


def test_a_dry_run_lists_and_removes_nothing(app):
    file = old(app / "cache/evaluation/doe.safetensors")
    result = call("--dry-run")
    assert result.exit_code == 0
    assert "evaluation  1 would go" in result.output
    assert str(file) in result.output.replace("\n", "")
    assert file.exists()
    assert not (app / "logs/audit.jsonl").exists()


def test_it_removes_what_is_old_and_notes_counts_alone(app):
    file, report = old(app / "cache/evaluation/doe.safetensors"), old(app / "runs/batch/batch.csv")
    result = call()
    assert result.exit_code == 0, result.output
    assert not file.exists()
    assert report.exists()
    text = (app / "logs/audit.jsonl").read_text()
    record = [json.loads(line) for line in text.splitlines()][-1]
    assert record["event"] == "purge"
    assert "doe" not in text
    assert call("--what", "reports", "--older-than", "10").exit_code == 0
    assert not report.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--what", "scans"], "expected kinds out of all"),
        (["--what", "reports"], "--older-than DAYS"),
        (["--older-than", "-3"], "between 0 and 36500"),
        (["--studies", "/nowhere"], "expected the studies folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(app, arguments, said):
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.output
