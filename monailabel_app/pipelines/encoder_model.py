"""A model to start from that holds a site's own ResNet-18 as the frozen encoder of a feature autoencoder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from monailabel_app.methods import feature_autoencoder
from monailabel_app.networks.resnet18_file import read_resnet18
from monailabel_app.training.checkpoint import TrainingState
from monailabel_app.weights import versions

from .fit import export_model

_METHOD, _PRESET = "feature_autoencoder", "imagenet"


def encoder_model(root: Path, file: Path, *, name: str, modality: str = "t1", seed: int = 0) -> versions.Version:
    """Publish a version of ``name`` that does not serve: the encoder from ``file``, the autoencoder untrained.

    A training that starts from it (``--start-from NAME@VERSION``) keeps the encoder as it is. Raises InvalidSettings
    for a file that holds no ResNet-18 and for a bad name.
    """
    versions.check_name(name)
    weights = read_resnet18(file)
    config = feature_autoencoder.PRESETS[_PRESET]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = feature_autoencoder.build(config)
    model.take_encoder(weights)
    state = TrainingState(
        model=model.state_dict(),
        ema=model.state_dict(),
        optimizer={},
        generator=torch.empty(0, dtype=torch.uint8),
        step=0,
        seconds=0.0,
        history=[],
        settings={"method": _METHOD, "config": asdict(config)},
    )
    staged = versions.new_staging(root, name)
    export_model(
        Path(),
        staged,
        modality=modality,
        training_data={"name": "none yet: an encoder to start from"},
        training={"encoder": "torchvision ResNet-18 brought by the site"},
        state=state,
    )
    return versions.publish(root, name, staged, promote=False, reason="encoder to start a training from")
