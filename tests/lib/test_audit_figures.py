"""What Prometheus is told of the audit log: a new file does not look like a log that has stopped, and what is lost
does not look like a log that goes on."""

from types import SimpleNamespace

import pytest

from lib import audit, figures
from monailabel_app.audit.log import AuditLog, rotated

WHO = {"name": "anna", "role": "reader", "how": "token"}


@pytest.fixture
def app(tmp_path):
    before = audit.journal()
    app = SimpleNamespace(app_dir=str(tmp_path), conf={"audit": str(tmp_path / "audit.jsonl")})
    audit.configure(tmp_path, app.conf)
    yield app
    audit._journal = before


def told(app):
    return {family.name: family.samples[0].value for family in figures._about_audit(app)}


def test_a_new_file_takes_no_record_and_no_byte_away(app):
    path = audit.journal().log.path
    log = AuditLog(path, max_bytes=2000)
    before = {"anomaly_audit_records": 0, "anomaly_audit_bytes": 0}
    for _ in range(15):
        log.append("review", WHO)
        now = told(app)
        assert all(now[name] > before[name] for name in ("anomaly_audit_records", "anomaly_audit_bytes"))
        before = now
    assert rotated(path)
    assert before["anomaly_audit_records"] == 16
    assert before["anomaly_audit_bytes"] == sum(file.stat().st_size for file in [*rotated(path), path])


def test_without_the_head_the_lines_are_counted(app):
    path = audit.journal().log.path
    log = AuditLog(path, max_bytes=2000)
    for _ in range(15):
        log.append("review", WHO)
    path.with_name("audit.jsonl.head").unlink()
    assert told(app)["anomaly_audit_records"] == 16


def test_what_could_not_be_noted_is_counted(app, tmp_path):
    assert told(app)["anomaly_audit_unwritten"] == 0
    file = tmp_path / "file"
    file.write_text("")
    audit.configure(tmp_path, {"audit": str(file / "audit.jsonl")})
    app.conf["audit"] = str(file / "audit.jsonl")
    audit.note("review")
    assert told(app)["anomaly_audit_unwritten"] == 1
