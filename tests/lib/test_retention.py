"""The server's own rounds: one a day, noted in the audit log and the figures, never over what it works with."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import audit, retention
from lib.datastore import AnomalyLocalDatastore
from monailabel_app.errors import InvalidSettings
from monailabel_app.monitoring.instruments import REGISTRY

DAY = 86400.0


def put(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"brain")
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


@pytest.fixture
def app(tmp_path, monkeypatch):
    """What a round asks of ``AnomalyApp``."""
    studies = tmp_path / "studies"
    studies.mkdir()
    monkeypatch.setattr(retention.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.delenv("ANOMALY_AUDIT", raising=False)
    app = SimpleNamespace(
        app_dir=str(tmp_path / "app"),
        conf={"retention_days": "30"},
        datastore=lambda: AnomalyLocalDatastore(str(studies), auto_reload=False),
        sessions=lambda: SimpleNamespace(store_path=str(tmp_path / "home" / "sessions")),
        analyses=SimpleNamespace(store=None),
        jobs=SimpleNamespace(working=lambda: {"busy": "running"}),
        studies=studies,
    )
    (tmp_path / "app" / "logs").mkdir(parents=True)
    audit.configure(app.app_dir, {})
    return app


def test_old_maps_go_with_the_notes_of_it_and_those_of_a_scan_that_is_analysed_stay(app):
    maps = app.studies / "labels" / "anomaly_map"
    old, busy, young = put(maps / "Doe^Jane.nii.gz", 40), put(maps / "busy.nii.gz", 40), put(maps / "new.nii.gz", 1)
    label = put(app.studies / "labels" / "final" / "Doe^Jane.nii.gz", 4000)
    before = REGISTRY.get_sample_value("anomaly_purged_bytes_total", {"kind": "maps"}) or 0
    retention.run(app)
    assert [path.exists() for path in (old, busy, young, label)] == [False, True, True, True]
    assert REGISTRY.get_sample_value("anomaly_purged_bytes_total", {"kind": "maps"}) == before + 5
    text = (Path(app.app_dir) / "logs" / "audit.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["event"] for record in records].count("purge") == 1
    assert "Doe" not in text
    assert '"things":1' in text.replace(" ", "")


def test_a_round_that_removes_nothing_is_not_noted(app):
    retention.run(app)
    assert not (Path(app.app_dir) / "logs" / "audit.jsonl").exists()


def test_what_users_made_stays_unless_somebody_said_how_long(app):
    app.conf = {}
    report = put(Path(app.app_dir) / "runs/scoring/20250101-000000/summary.json", 400)
    os.utime(report.parent, (0, 0))
    retention.run(app)
    assert report.exists()


def test_there_is_one_round_a_day(app, monkeypatch):
    monkeypatch.setattr(retention, "_last", {})
    rounds = []
    monkeypatch.setattr(retention, "run", rounds.append)
    for _ in range(3):
        thread = retention.now_and_then(app)
        if thread is not None:
            thread.join(120)
    assert rounds == [app]
    monkeypatch.setattr(retention, "_last", {id(app): time.monotonic() - retention.ROUND_SECONDS})
    retention.now_and_then(app).join(120)
    assert rounds == [app, app]


def test_the_servers_own_folder_for_temporary_files_is_not_the_place_to_look_for_dead_ones(app, tmp_path, monkeypatch):
    monkeypatch.setattr(retention.tempfile, "gettempdir", lambda: str(tmp_path / "tmp" / "anomaly_server_1234"))
    assert retention.folders(app).temporary == tmp_path / "tmp"


def test_an_age_that_is_none_keeps_the_server_from_starting():
    with pytest.raises(InvalidSettings, match="retention_days"):
        retention.check_conf({"retention_days": "a week"})
