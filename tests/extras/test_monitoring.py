"""The dashboard and the alerts ask for figures that there are; Prometheus' own tool accepts and tries the rules."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lib import figures
from monailabel_app.monitoring import instruments

FOLDER = Path(__file__).resolve().parents[2] / "extras" / "monitoring"
NAME = re.compile(r"\b(?:anomaly|process)_[a-z_]+\b")
SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_info")
# Of prometheus_client's own collector.
PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}
PROCESS |= {"process_cpu_seconds_total"}


def rules():
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard():
    return json.loads((FOLDER / "grafana_dashboard.json").read_text())


def asked_for():
    """Every figure that an expression names, by where it stands."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    found += [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]]
    return [(place, name) for place, expr in found for name in NAME.findall(expr)]


def exported():
    """The names of samples: of the instruments, and of the families that the source of the collector names."""
    source = Path(figures.__file__).read_text()
    families = set(re.findall(r'"(anomaly_[a-z_]+)"', source))
    families |= {family.name for family in instruments.REGISTRY.collect()}
    return families | {name + suffix for name in families for suffix in SUFFIXES} | PROCESS


@pytest.mark.parametrize(("place", "name"), asked_for())
def test_what_is_asked_for_is_exported(place, name):
    assert name in exported(), f"{place} asks for {name}"


def test_a_name_that_is_not_exported_would_be_noticed():
    assert "anomaly_queue_lengths" not in exported()


def test_there_is_an_alert_for_each_trouble_and_each_says_what_to_do():
    named = " ".join(rule["alert"] for rule in rules())
    for trouble in ("Queue", "Failures", "DiskLow", "NoAnalysis", "MemoryHigh", "ServerDown"):
        assert trouble in named
    assert all(rule["annotations"]["action"] for rule in rules())


def test_the_panels_do_not_lie_on_each_other():
    places = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) <= 23


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "task",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("test", "rules", "alerts_weeks_test.yml"),
    ],
)
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(task):
    run = subprocess.run(["promtool", *task], cwd=FOLDER, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
