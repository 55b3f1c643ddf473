"""Rebuilding names its targets and trains the brain extraction from scratch with the given budget."""

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import rebuild


def test_an_unknown_target_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidSettings, match=r"template, brain_extraction,.* ddpm_t1"):
        list(rebuild.rebuild_weights(tmp_path, tmp_path, minutes=1, device="cpu", only="atlas", bar=None))


def test_the_brain_extraction_is_trained_anew_within_the_budget(tmp_path, monkeypatch):
    old = tmp_path / "runs" / "brain_extraction"
    old.mkdir(parents=True)
    (old / "checkpoint.safetensors").write_bytes(b"old")
    called = []

    def export(run, folder):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("kind: brain_extraction\n")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(rebuild.brain_training, "main", called.append)
    monkeypatch.setattr(rebuild.brain_training, "export_brain_unet", export)
    lines = list(
        rebuild.rebuild_weights(tmp_path, tmp_path, minutes=3, device="cpu", only="brain_extraction", bar=None)
    )
    assert not old.exists()
    assert called[0][0] == "train"
    assert called[0][-2:] == ["--minutes", "3"]
    assert (tmp_path / "model_weights" / "brain_extraction" / "sha256sums.txt").is_file()
    assert len(lines) == 1
