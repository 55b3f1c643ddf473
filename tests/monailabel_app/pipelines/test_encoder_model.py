"""A site's ResNet-18 becomes a model to start from, and a training keeps it as it is."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods import feature_autoencoder
from monailabel_app.methods.feature_autoencoder import AutoencoderConfig
from monailabel_app.pipelines.config_io import config_from_plain
from monailabel_app.pipelines.encoder_model import encoder_model
from monailabel_app.training.healthy_loop import train
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import open_model_folder
from tests.monailabel_app.networks.test_resnet18_file import resnet18_state
from tests.monailabel_app.synthetic import TINY_TRAINING, random_cache


@pytest.fixture(autouse=True)
def small_autoencoder(monkeypatch):
    """The published autoencoder has ten million weights, which these tests do not need."""
    small = replace(feature_autoencoder.PRETRAINED, autoencoder=AutoencoderConfig(widths=(8, 12)))
    monkeypatch.setitem(feature_autoencoder.PRESETS, "imagenet", small)


def test_a_training_from_the_made_model_keeps_the_brought_encoder(tmp_path):
    torch.save(resnet18_state(), tmp_path / "resnet18.pth")
    made = encoder_model(tmp_path, tmp_path / "resnet18.pth", name="resnet18_encoder", modality="t1")
    assert made.id == "resnet18_encoder@0001"
    assert versions.current(tmp_path, "resnet18_encoder") is None
    opened = open_model_folder(made.folder)
    weights, config = opened.weights(), config_from_plain(feature_autoencoder.Config, dict(opened.config["config"]))
    assert config == feature_autoencoder.PRESETS["imagenet"]
    kept = {name: value.bfloat16().float() for name, value in resnet18_state().items() if value.is_floating_point()}
    settings = replace(TINY_TRAINING, steps=2)
    state = train("feature_autoencoder", config, random_cache(1), None, settings, tmp_path / "run", start_from=weights)
    for part in (state.model, state.ema):
        taken = {name.removeprefix("extractor."): v for name, v in part.items() if name.startswith("extractor.")}
        assert len(taken) == 50
        assert all(torch.equal(value, kept[name]) for name, value in taken.items())
    assert not torch.equal(state.model["autoencoder.out.bias"], weights["autoencoder.out.bias"])


def test_a_file_that_holds_no_resnet18_makes_no_model(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InvalidSettings, match="another network"):
        encoder_model(tmp_path, tmp_path / "other.pth", name="resnet18_encoder")
    with pytest.raises(InvalidSettings):
        encoder_model(tmp_path, tmp_path / "other.pth", name="../outside")
    assert not (tmp_path / "model").exists()
