"""Commands leave a record, also where they fail or are broken off."""

import pytest
import typer
from typer.testing import CliRunner

from monailabel_app import cli_audit, cli_tokens
from monailabel_app.audit import FILE, AuditLog, command_noted
from monailabel_app.audit.verify import records
from monailabel_app.cli import app
from monailabel_app.errors import UnknownModel

WHO = {"name": "anna", "role": "reader", "how": "token"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_AUDIT", str(tmp_path / "logs" / FILE))
    for module in (cli_audit, cli_tokens):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def last(root):
    return list(records(root / "logs" / FILE))[-1]


def test_a_token_that_is_made_is_noted_without_its_secret(root):
    made = run("tokens", "create", "--name", "ward3", "--role", "reader", "--file", root / "tokens.json")
    assert made.exit_code == 0, made.output
    record = last(root)
    assert (record["event"], record["who"]["how"], record["facts"]["token"]) == ("token_created", "command", "ward3")
    assert made.stdout.split()[-1] not in (root / "logs" / FILE).read_text()
    assert run("tokens", "revoke", "ward3", "--file", root / "tokens.json").exit_code == 0
    assert last(root)["event"] == "token_revoked"


@pytest.mark.parametrize(("error", "outcome"), [(UnknownModel("none"), "failed"), (typer.Abort(), "cancelled")])
def test_a_command_that_does_not_end_well_is_noted_as_such(root, error, outcome):
    with pytest.raises(type(error)), command_noted(root, "promoted", model="a"):
        raise error
    assert (last(root)["outcome"], last(root)["facts"]["kind"]) == (outcome, type(error).__name__)


def test_verify_head_and_show_speak_of_the_same_log(root):
    log = AuditLog(root / "logs" / FILE)
    log.append("review", WHO, facts={"image": "scan1"})
    log.append("login", {**WHO, "name": "berta"})
    checked = run("audit", "verify")
    assert checked.exit_code == 0, checked.output
    assert "whole: 3 records" in checked.output
    head = run("audit", "head").output.strip()
    assert run("audit", "verify", "--head", head).exit_code == 0
    assert run("audit", "verify", "--head", "0" * 64).exit_code == 1
    assert "review" in run("audit", "show", "--image", "scan1").output
    assert "login" not in run("audit", "show", "--who", "anna").output
    assert "no record fits" in run("audit", "show", "--until", "2020-01-01").output


def test_a_broken_log_has_exit_code_one_and_says_where(root):
    path = root / "logs" / FILE
    log = AuditLog(path)
    for _ in range(3):
        log.append("review", WHO)
    path.write_bytes(path.read_bytes().replace(b"anna", b"hans", 1))
    checked = run("audit", "verify")
    assert checked.exit_code == 1
    assert "line 2: changed" in checked.output
    assert "BROKEN" in checked.output
    assert run("audit", "head").exit_code == 1
    assert run("audit", "verify", "--json").exit_code == 1
