"""From a folder of healthy scans to a calibrated model, with the patients on one side each."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines import build_model as module
from monailabel_app.pipelines.prepared_cache import prepare_sources
from monailabel_app.registry import load_method
from monailabel_app.training.cache import TrainingCache
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, save_template

from .test_prepared_cache import write_scan


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of scans with given masks, in the place of one whose brains the shipped extraction would find."""
    extractor = tmp_path / "brain_extraction"
    extractor.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (extractor / name).write_text("not needed for scans with a mask")
    options = {"template_folder": save_template(tmp_path), "extractor_folder": extractor}
    monkeypatch.setattr(module, "prepare_sources", partial(prepare_sources, **options))

    def scans(count):
        made = [write_scan(tmp_path / "scans", index) for index in range(count)]
        monkeypatch.setattr(module, "list_sources", lambda folder: made)
        return tmp_path / "scans"

    return scans


def test_ten_scans_become_a_calibrated_model_and_no_name_stays_in_its_files(site, tmp_path, monkeypatch):
    folder = site(10)
    stages = []
    tell = lambda stage, done, total: stages.append((stage, done, total))  # noqa: E731
    healthy = module.prepare_set(folder, "t1", tmp_path / "cache", workers=0, stage=tell)
    train, held_out = TrainingCache.load(healthy.train_cache), TrainingCache.load(healthy.validation_cache)
    assert (len(train), len(held_out), healthy.data["scans"]) == (5, 5, 5)
    assert not set(train.digests) & set(held_out.digests)
    assert not set(train.patients) & set(held_out.patients)
    for word in (b"patient7", b"scans/"):
        assert word not in healthy.train_cache.read_bytes() + healthy.validation_cache.read_bytes()
    monkeypatch.setitem(load_method("ddpm").PRESETS, "tiny", TINY["ddpm"])
    made = module.build_model(
        "ddpm",
        healthy,
        tmp_path / "model",
        tmp_path / "run",
        replace(TINY_TRAINING, steps=2),
        modality="t1",
        preset="tiny",
        stage=tell,
    )
    assert Calibration.load(made).healthy["scans"] == 5
    assert ("preparing scans", 10, 10) in stages
    assert ("calibrating", 5, 5) in stages


def test_preparing_again_gives_the_same_sets_without_preparing(site, tmp_path, monkeypatch):
    folder = site(11)
    first = module.prepare_set(folder, "t1", tmp_path / "cache", workers=0)
    images = TrainingCache.load(first.train_cache).images
    first.train_cache.unlink()
    monkeypatch.setattr("monailabel_app.preprocessing.pipeline.Preprocessor.prepare", None)
    again = module.prepare_set(folder, "t1", tmp_path / "cache", workers=0)
    assert torch.equal(TrainingCache.load(again.train_cache).images, images)


def test_fewer_than_ten_patients_are_refused_before_anything_is_prepared(site, tmp_path):
    with pytest.raises(TrainingFailed, match=r"at least 10 patients.*got 9 scans of 9"):
        module.prepare_set(site(9), "t1", tmp_path / "cache", workers=0)
    assert not (tmp_path / "cache").exists()


def test_fewer_than_ten_usable_scans_are_refused_after_preparing(site, tmp_path):
    folder = site(10)
    (tmp_path / "scans" / "4.nii").write_bytes(b"broken")
    with pytest.raises(TrainingFailed, match=r"at least 10 patients.*got 9 scans of 9"):
        module.prepare_set(folder, "t1", tmp_path / "cache", workers=0)
