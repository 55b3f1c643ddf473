"""The reports of evaluations: what is listed, what can be fetched, and what a browser may do with it."""

import base64
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from lib.endpoints import evaluation, install
from lib.endpoints.evaluation import policy
from lib.errors import UnknownImage
from lib.scoring import reports
from monailabel_app.reports.evaluation_page import evaluation_html
from tests.lib.results_app import local_client

RECORD = {"version": 1, "made": {"time": "now"}, "sets": [], "failed": []}


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "evaluation.html").write_text(evaluation_html(RECORD))
    (folder / "evaluation.json").write_text(json.dumps(RECORD))
    (folder / "scans.csv").write_text("model\n")
    (folder / "secret.txt").write_text("not for clients")
    return folder


def test_a_report_holds_the_page_and_the_figures_and_nothing_else(tmp_path, made):
    report = reports.publish(tmp_path / "reports", made, {"models": ["one"]})
    folder = tmp_path / "reports" / report
    assert {path.name for path in folder.iterdir()} == {
        "evaluation.html", "evaluation.json", "scans.csv", "summary.json",
    }  # fmt: skip
    assert reports.find(tmp_path / "reports", report).read_text() == evaluation_html(RECORD)
    (listed,) = reports.reports(tmp_path / "reports")
    assert listed["id"] == report
    assert listed["models"] == ["one"]
    assert listed["files"] == ["evaluation.json", "scans.csv"]
    assert listed["page"] is True


def test_the_newest_comes_first_and_two_of_a_second_are_two(tmp_path, made):
    ids = [reports.publish(tmp_path / "reports", made, {"number": number}) for number in range(3)]
    assert len(set(ids)) == 3
    assert [entry["number"] for entry in reports.reports(tmp_path / "reports")] == [2, 1, 0]


def test_what_is_no_whole_report_is_not_listed(tmp_path, made):
    report = reports.publish(tmp_path / "reports", made, {})
    (tmp_path / "reports" / "work").mkdir()
    (tmp_path / "reports" / "20260101-000000").mkdir()
    (tmp_path / "reports" / report / "summary.json").write_text("{")
    assert reports.reports(tmp_path / "reports") == []
    assert reports.reports(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("report", "name"),
    [
        ("../work", "evaluation.html"),
        ("..", "evaluation.html"),
        ("work", "evaluation.html"),
        ("", "evaluation.html"),
        ("20260101-000000", "evaluation.html"),
        ("REPORT", "../secret.txt"),
        ("REPORT", "secret.txt"),
        ("REPORT", "summary.json"),
        ("REPORT", "evaluation.csv"),
        ("REPORT\n", "evaluation.html"),
    ],
)
def test_nothing_else_can_be_fetched(tmp_path, made, report, name):
    known = reports.publish(tmp_path / "reports", made, {})
    (tmp_path / "reports" / known / "secret.txt").write_text("not for clients")
    with pytest.raises(UnknownImage):
        reports.find(tmp_path / "reports", report.replace("REPORT", known), name)


def test_a_browser_obeys_the_pages_own_style_and_script_only():
    page = evaluation_html(RECORD)
    said = policy(page)
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in said
    assert said.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in said
    assert "frame-ancestors 'none'; sandbox allow-scripts" in said


@pytest.mark.parametrize(
    "page",
    [
        "<html></html>",
        "<meta content=\"style-src 'unsafe-inline'; script-src 'unsafe-inline';\">",
        "<meta content=\"style-src 'sha256-x'; script-src https://example.org;\">",
        " " * 5000 + policy(evaluation_html(RECORD)),
    ],
)
def test_a_page_without_hashes_of_its_own_runs_no_script(page):
    assert "script-src 'none'" in policy(page)
    assert policy(page).endswith("sandbox")


@pytest.fixture
def client(tmp_path, made, monkeypatch):
    """The server's addresses as they are installed, over an app folder with one report."""
    app = SimpleNamespace(app_dir=str(tmp_path))
    monkeypatch.setattr(evaluation, "app_instance", lambda: app)
    reports.publish(tmp_path / "runs" / "scoring", made, {"models": ["one"]})
    server = FastAPI()
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(tmp_path))
    install(server)
    return local_client(server)


def test_reports_are_served_with_headers_that_keep_them_apart(client):
    (listed,) = client.get("/anomaly/evaluation/").json()
    page = client.get(listed["url"])
    assert page.status_code == 200
    assert page.text == evaluation_html(RECORD)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == policy(page.text)
    for name in ("", *listed["files"]):
        answer = client.get(f"{listed['url']}{name}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "attachment" in answer.headers.get("content-disposition", "attachment")


@pytest.mark.parametrize(
    "path", ["20260101-000000/", "..%2f..%2fmain.py", "work/", "x/evaluation.json", "{id}/summary.json"]
)
def test_what_is_not_there_is_404(client, path):
    report = client.get("/anomaly/evaluation/").json()[0]["id"]
    answer = client.get("/anomaly/evaluation/" + path.format(id=report))
    assert answer.status_code == 404


def test_reports_need_the_role_that_reads_scans():
    """Every address asks MONAI Label's own access control, and for the same role as a scan's file."""
    wanted = settings.MONAI_LABEL_AUTH_ROLE_USER
    for route in evaluation.router.routes:
        calls = [dependency.call for dependency in route.dependant.dependencies]
        assert [call.roles for call in calls if isinstance(call, RBAC)] == [wanted]
