"""The drift report over a log of made-up analyses: what stays steady, what changes, and what are too few."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from monailabel_app.audit import AuditLog
from monailabel_app.audit import record as record_module
from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.site_drift import changes, drift_report
from monailabel_app.reports.drift_page import drift_html

WHO = {"name": "anna", "role": "reader", "how": "token"}
START = datetime(2026, 3, 2, 8, tzinfo=timezone.utc)


class Site:
    """Analyses of a site, some a day, written as the server writes them."""

    def __init__(self, path, monkeypatch):
        self.log, self.path, self.count = AuditLog(path), path, 0
        self.generator = np.random.default_rng(7)
        made = record_module.make_record
        monkeypatch.setattr("monailabel_app.audit.log.make_record", lambda *given: made(*given, time=self.time()))

    def time(self):
        return (START + timedelta(hours=8 * self.count)).isoformat(timespec="milliseconds")

    def now(self):
        return START + timedelta(hours=8 * self.count)

    def scan(self, shift=0.0, background=1.0, flagged=0.03, model="cold_diffusion_t1", failed=False, again=False):
        self.count += not again
        draw = self.generator
        if failed:
            self.log.append("analysis", WHO, "failed", {"model": model, "kind": "BrainNotFound"})
            return
        score = float(draw.lognormal(0.8, 0.3) + shift)
        rank = int(draw.integers(1, 22))
        facts = {
            "model": model,
            "result_hash": "a" * 64,
            "calibration": "shipped",
            "healthy_scans": 20,
            "settings": {"score": "signed", "smoothing": "standard"},
            "image": f"scan{self.count}",
            "input": f"{self.count:064d}",
            "anomaly_score": score,
            "p_value": min(rank, 21) / 21,
            "gate": {"passed": bool(draw.random() > flagged), "p_value": 0.5},
            "drift": {"distance": float(draw.uniform(0.05, 0.2)), "background_ratio": background + draw.normal(0, 0.1)},
            "warnings": int(draw.random() < 0.1),
            "seconds": {"reconstruction": float(draw.uniform(8, 10)), "waiting": 50.0},
        }
        self.log.append("analysis", WHO, "ok", facts)


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path / "audit.jsonl", monkeypatch)


def test_a_steady_site_shows_no_change_and_a_changed_scanner_is_named(site):
    for _ in range(100):
        site.scan()
    steady = drift_report(site.path, now=site.now())
    assert changes(steady) == []
    assert steady["series"][0]["healthy"]["calibration_scans"] == 20
    for _ in range(60):
        site.scan(shift=0.6, background=1.7, flagged=0.5)
    record = drift_report(site.path, now=site.now())
    background = record["series"][0]["quantities"]["background"]
    assert background["watch"]["state"] == "changed"
    assert background["watch"]["higher"]
    assert abs(background["watch"]["since"] - 100) < 20
    assert background["change"]["changed"]
    assert record["series"][0]["quantities"]["seconds"]["watch"]["state"] == "steady"
    assert any("background ratio" in line for line in changes(record))
    page = drift_html(record)
    assert "Something has changed" in page
    assert "not healthy volunteers" in page
    assert "<script" not in page
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_few_scans_say_so_everywhere(site):
    for _ in range(7):
        site.scan()
    site.scan(failed=True)
    record = drift_report(site.path, now=site.now())
    entry = record["series"][0]
    assert {about["watch"]["state"] for about in entry["quantities"].values()} == {"few"}
    assert entry["healthy"] is None
    assert entry["failures"] == {"BrainNotFound": 1}
    page = drift_html(record)
    assert "Too few scans to tell" in page
    assert "too few" in page


def test_a_scan_counts_once_however_often_it_is_looked_at(site):
    for _ in range(10):
        site.scan()
        site.scan(again=True)
    assert drift_report(site.path, now=site.now())["series"][0]["scans"] == 10


def test_another_model_has_a_series_of_its_own(site):
    for _ in range(6):
        site.scan()
        site.scan(model="ddpm_t1@0002")
    record = drift_report(site.path, now=site.now())
    assert [entry["model"] for entry in record["series"]] == ["cold_diffusion_t1", "ddpm_t1@0002"]
    assert len(drift_report(site.path, model="ddpm_t1", now=site.now())["series"]) == 1
    with pytest.raises(EvaluationFailed, match="found none"):
        drift_report(site.path, model="other", now=site.now())


def test_a_broken_log_is_said_on_the_page(site):
    for _ in range(5):
        site.scan()
    lines = site.path.read_bytes().splitlines(keepends=True)
    site.path.write_bytes(b"".join(lines[:2] + lines[3:]))
    record = drift_report(site.path, now=site.now())
    assert not record["log"]["whole"]
    assert "The audit log is broken" in drift_html(record)


def test_weeks_have_shares_with_exact_intervals(site):
    for _ in range(30):
        site.scan()
    weeks = drift_report(site.path, now=site.now())["series"][0]["weeks"]
    assert sum(week["scans"] for week in weeks) == 30
    full = next(week for week in weeks if not week["few"])
    low, high = full["gate"]["interval"]
    assert 0 <= low <= full["gate"]["yes"] / full["gate"]["total"] <= high <= 1
