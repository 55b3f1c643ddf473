"""Whoever trains or installs a model that the server's list of models leaves out is told so in the answer."""

import io
import zipfile
from types import SimpleNamespace

import pytest
from fastapi import UploadFile
from monailabel.config import settings

from lib import audit
from lib.endpoints.model_upload import install
from lib.trainers import HealthyTrainTask
from monailabel_app.pipelines import site_training, uploaded_model
from monailabel_app.pipelines.uploaded_model import REQUIRED

WORDS = "--conf models names one"


@pytest.fixture(params=["one", "all", "one,mine"])
def wanted(request, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"models": request.param})
    return request.param


def is_told(answer, wanted):
    return WORDS in answer["note"] if wanted == "one" else "note" not in answer


def test_the_answer_to_an_upload_says_it(tmp_path, monkeypatch, wanted):
    version = SimpleNamespace(version="0001", hash="ab", serving=True)
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(tmp_path))
    monkeypatch.setattr(uploaded_model, "publish_upload", lambda *args, **options: version)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in REQUIRED:
            file.writestr(name, "x")
    archive.seek(0)
    answer = install("mine", UploadFile(archive, filename="m.zip"), None)
    assert answer["version"] == "0001"
    assert is_told(answer, wanted)


def test_the_result_of_a_training_says_it(tmp_path, monkeypatch, wanted):
    result = SimpleNamespace(name="mine", version="0001", promoted=True, to_json=lambda: {"name": "mine"})
    monkeypatch.setattr(site_training, "train_site", lambda *args, **options: result)
    monkeypatch.setattr(audit, "note", lambda *args, **facts: None)
    selection = SimpleNamespace(scans=(), contaminated=(), left_out={})
    answer = HealthyTrainTask("ddpm", tmp_path, lambda datastore: selection)({"name": "mine"}, None)
    assert answer["name"] == "mine"
    assert is_told(answer, wanted)
