"""Ready means: models whole, scans within reach, room on the disk. Health fails only for what a restart may mend."""

import shutil
from types import SimpleNamespace

import pytest

from lib import readiness
from lib.archive_client import fault_of_archive
from tests.lib.results_app import Task


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "_held", {})
    monkeypatch.setattr(readiness, "_verified", {})
    studies = tmp_path / "studies"
    studies.mkdir()
    task = Task(tmp_path / "ddpm_t1")
    return SimpleNamespace(
        app_dir=str(tmp_path),
        tasks=lambda: {"ddpm_t1": task, "ddpm_t1_bands": task},
        datastore=lambda: SimpleNamespace(_datastore_path=str(studies)),
        sessions=lambda: None,
        analyses=SimpleNamespace(store=None),
        jobs=SimpleNamespace(silent=list),
        studies=studies,
        folder=task.entry.folder,
    )


def faults(app):
    return {check["name"]: check.get("detail", "") for check in readiness.checks(app) if not check["ok"]}


def test_all_is_well(app):
    assert faults(app) == {}
    assert readiness.works(app)


def test_a_damaged_model_is_named_and_is_no_reason_to_restart(app):
    (app.folder / "model.safetensors").write_bytes(b"other")
    assert "ddpm_t1: CorruptModel" in faults(app)["models"]
    assert readiness.works(app)


def test_a_model_is_verified_once_and_again_when_it_changes(app, monkeypatch):
    looked = []
    monkeypatch.setattr(readiness, "verify", looked.append)
    monkeypatch.setitem(readiness._KEPT_SECONDS, "models", 0.0)
    faults(app), faults(app)
    assert len(looked) == 1
    (app.folder / "model.safetensors").write_bytes(b"others")
    faults(app)
    assert len(looked) == 2


def test_a_studies_folder_that_has_gone_is_said_by_both(app):
    shutil.rmtree(app.studies)
    assert "is its disk mounted?" in faults(app)["studies"]
    assert not readiness.works(app)


def test_no_model_is_said_by_both(app):
    app.tasks = dict
    assert "no model serves" in faults(app)["models"]
    assert not readiness.works(app)


def test_a_disk_that_is_nearly_full_is_named(app, monkeypatch):
    monkeypatch.setattr(readiness, "free_bytes", lambda path: (10 * 2**20, 2**40))
    assert "datastore (10 MiB)" in faults(app)["disk"]
    assert readiness.works(app)


def test_work_that_tells_nothing_for_long_is_named_and_other_work_is_not(app):
    job = SimpleNamespace(id="a1b2", stage="reconstruction", plan=SimpleNamespace(device="cuda:0"))
    other = SimpleNamespace(id="c3d4", stage="alignment", plan=SimpleNamespace(device="cpu"))
    app.jobs = SimpleNamespace(silent=lambda: [(readiness.MOST_SILENT_SECONDS + 60, job), (30.0, other)])
    told = faults(app)["work"]
    assert "a1b2 (reconstruction, 16 min, on cuda:0)" in told
    assert "c3d4" not in told
    assert readiness.works(app)


def test_an_answer_is_kept_for_a_moment(app):
    assert faults(app) == {}
    shutil.rmtree(app.studies)
    assert faults(app) == {}


def test_an_archive_that_does_not_answer_is_told_from_one_that_refuses(app):
    asked = []

    class Session:
        def get(self, url, **kwargs):
            asked.append((url, kwargs["timeout"]))
            return SimpleNamespace(ok=False, status_code=401, close=lambda: None)

    client = SimpleNamespace(_session=Session(), base_url="http://archive/dicom-web/", qido_url_prefix="qido")
    assert "it answers 401" in fault_of_archive(client, 3.0)
    assert asked == [("http://archive/dicom-web/qido/studies", (3.0, 3.0))]
    closed = SimpleNamespace(_session=None, base_url="http://127.0.0.1:9", qido_url_prefix=None)
    assert "no answer within 1 s" in fault_of_archive(closed, 1.0)
