"""Back up a server at work, lose everything, put it back: labels, models, tokens and the audit log are as they were."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.published import publish_model
from tests.real.faults import MODEL, Killable, count, few_models, label, scan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "extras/deploy/backup.py"


@pytest.fixture(autouse=True)
def _the_log_where_it_belongs(monkeypatch):
    monkeypatch.delenv("ANOMALY_AUDIT", raising=False)


def run(*arguments, app=None):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=app, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def test_everything_that_a_site_made_comes_back(tmp_path):
    (tmp_path / "app").mkdir()
    app, studies = few_models(tmp_path / "app", MODEL, copies=True), tmp_path / "studies"
    studies.mkdir()
    scan(studies / "one.nii.gz")
    publish_model(app, "site_t1")
    where = ["--app", app, "--studies", studies, "--archive-folder", tmp_path / "none"]
    with Killable(studies, app) as server:
        assert server.submit("one", label(tmp_path / "label.nii.gz", 17)).status_code == 200
        assert server.upload("two", scan(tmp_path / "two.nii.gz", 2)).status_code == 200
        run(SCRIPT, "make", tmp_path / "backup.tar", *where, "--scans")
        models = digests(app / "model")
        # What is written after the backup is not in it.
        assert server.submit("one", label(tmp_path / "label.nii.gz", 99)).status_code == 200
        server.kill()
        head = run("main.py", "audit", "verify", app=app)
        assert head.startswith("whole")
        for folder in (app / "model", app / "logs", studies):
            shutil.rmtree(folder)
        run(SCRIPT, "restore", tmp_path / "backup.tar", *where)
        assert digests(app / "model") == models
        assert run("main.py", "audit", "verify", app=app).startswith("whole")
        assert "site_t1" in run("main.py", "models", "list", app=app)
        run("main.py", "models", "verify", app=app)
        server.up()
        assert set(server.images()) == {"one", "two"}
        (tmp_path / "back.nii.gz").write_bytes(server.label("one").content)
        assert count(tmp_path / "back.nii.gz") == 17
        # And the log goes on from where the backup ended.
        assert server.submit("one", label(tmp_path / "label.nii.gz", 5)).status_code == 200
        assert run("main.py", "audit", "verify", app=app).startswith("whole")
