"""Listing: what serves under each name, noticed when it changes, without reading the models."""

import logging
import os

import pytest
import torch

from monailabel_app.weights import listing
from monailabel_app.weights.listing import fingerprint, list_models, trained_names
from monailabel_app.weights.model_folder import SUMS, seal, write_weights
from monailabel_app.weights.versions import new_staging, promote, publish, remove_model, rollback

CONFIG = "kind: anomaly\nmethod: ddpm\nmodality: t1\n"


def write_model(folder, text=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    write_weights(folder, {"w": torch.zeros(2)})
    seal(folder)
    return folder


def publish_model(root, name, text=CONFIG):
    return publish(root, name, write_model(new_staging(root, name), text), promote=True)


@pytest.fixture
def root(tmp_path):
    write_model(tmp_path / "model_weights" / "ddpm_t1")
    write_model(tmp_path / "model" / "copied")
    publish_model(tmp_path, "trained")
    (tmp_path / "model" / "site.key").write_text("no folder")
    return tmp_path


def test_shipped_copied_and_published_models_are_listed_by_what_serves(root):
    found = list_models(root)
    assert {name: (entry.version, entry.id) for name, entry in found.items()} == {
        "ddpm_t1": ("shipped", "ddpm_t1"),
        "copied": ("", "copied"),
        "trained": ("0001", "trained@0001"),
    }
    assert trained_names(root) == {"trained"}


def test_a_published_version_takes_the_place_of_the_shipped_one(root):
    version = publish_model(root, "ddpm_t1", CONFIG.replace("t1", "flair"))
    entry = list_models(root)["ddpm_t1"]
    assert (entry.folder, entry.modality, entry.hash) == (version.folder, "flair", version.hash)
    assert list(list_models(root)) == ["ddpm_t1", "copied", "trained"]


def test_nothing_is_read_but_the_small_files(root, monkeypatch):
    def opened(self, *args, **kwargs):
        raise AssertionError(self)

    monkeypatch.setattr(listing, "recorded_hash", opened)
    monkeypatch.setattr("monailabel_app.weights.model_folder.sha256_of", opened)
    (root / "model_weights" / "ddpm_t1" / "model.safetensors").unlink()
    (root / "model_weights" / "ddpm_t1" / SUMS).unlink()
    assert "ddpm_t1" in list_models(root)


def test_a_broken_model_does_not_hide_the_others(root, caplog):
    (root / "model" / "trained" / "CURRENT").write_text("0005\n")
    (root / "model" / "copied" / "config.yaml").write_bytes(b"\xff\xfe: [")
    with caplog.at_level(logging.WARNING):
        assert list(list_models(root)) == ["ddpm_t1"]
    assert "trained is left out" in caplog.text
    assert "copied is left out" in caplog.text


def _same(root):
    return None


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (_same, False),
        (lambda root: publish_model(root, "new"), True),
        (lambda root: publish_model(root, "trained"), True),
        (lambda root: rollback(root, "copied"), True),
        (lambda root: remove_model(root, "trained"), True),
        (lambda root: write_model(root / "model" / "flat"), True),
        (lambda root: (root / "model" / "trained" / "CURRENT").write_text("0005\n"), True),
        (lambda root: (root / "model" / "copied" / "config.yaml").write_text(CONFIG + "a: 1\n"), True),
        (lambda root: (root / "model" / "copied" / "calibration.json").write_text("{}"), True),
        (lambda root: (root / "model" / "trained" / "versions" / "0001" / "config.yaml").unlink(), True),
        (lambda root: promote(root, "trained", "1"), False),
        (lambda root: new_staging(root, "trained"), False),
    ],
)
def test_every_change_of_what_serves_changes_the_fingerprint(root, change, noticed):
    write_model(root / "model_weights" / "copied")
    before = fingerprint(root)
    change(root)
    assert (fingerprint(root) != before) is noticed


def test_a_fingerprint_opens_no_file_but_the_pointers(root, monkeypatch):
    opened = []
    real = open

    def noting(file, *args, **kwargs):
        opened.append(os.path.basename(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", noting)
    monkeypatch.setattr("io.open", noting)
    fingerprint(root)
    assert set(opened) == {"CURRENT"}
