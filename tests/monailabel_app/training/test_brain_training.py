"""Training the brain extraction network: it learns, it resumes, it exports what the extractor loads."""

import numpy as np
import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.head_synthesis import Head, HeadSynthesis
from monailabel_app.training.brain_training import (
    BrainTrainingSettings,
    checkpoint_step,
    export_brain_unet,
    load_heads,
    segmentation_loss,
    train_brain_unet,
)

NETWORK = {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "head_channels": 4}


@pytest.fixture
def head():
    """A bright ball of brain in a dimmer ball of head."""
    grid = np.stack(np.meshgrid(*[np.arange(24) - 12] * 3, indexing="ij"), -1)
    radius = torch.from_numpy(np.linalg.norm(grid, axis=-1))
    compartments = torch.zeros(24, 24, 24, dtype=torch.uint8)
    compartments[radius < 10] = 5
    compartments[radius < 7] = 10
    image = (compartments.float() * 25).to(torch.uint8)
    tissue = torch.full((256,), -1)
    tissue[5], tissue[10] = 8, 1
    return Head(image, compartments, tissue)


@pytest.fixture
def synthesis():
    return HeadSynthesis(shapes=((16, 16, 16),))


def settings(**changes):
    return BrainTrainingSettings(**{"steps": 4, "checkpoint_every": 2, "workers": 0, "warmup_steps": 1, **changes})


def test_loss_is_lower_for_the_right_mask_than_for_the_wrong_one():
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 2:6, 2:6] = True
    score = torch.where(mask, 5.0, -5.0)
    right = torch.stack([-score, score], 1)
    assert segmentation_loss(right, mask) < 0.2 < 1 < segmentation_loss(-right, mask)


def test_loss_falls_on_an_easy_head(head, tmp_path, synthesis, caplog):
    caplog.set_level("INFO")
    easy = HeadSynthesis(shapes=((16, 16, 16),), synthetic=0, stripped=0, slab=0, thick=0, flipped=0, blobs=0)
    train_brain_unet([head], tmp_path, settings(steps=100, learning_rate=1e-2), network=NETWORK, synthesis=easy)
    losses = [float(r.getMessage().split()[3]) for r in caplog.records if " loss " in r.getMessage()]
    assert losses[-1] < 0.8 * losses[0]


def test_resumed_training_goes_on_from_the_checkpoint_and_ends_where_an_uninterrupted_one_does(
    head, tmp_path, synthesis
):
    whole = tmp_path / "whole"
    train_brain_unet([head], whole, settings(), network=NETWORK, synthesis=synthesis)
    parts = tmp_path / "parts"

    class Killed(Exception):
        pass

    class Dies(HeadSynthesis):
        drawn = 0

        def draw(self, *arguments):
            Dies.drawn += 1
            if Dies.drawn > 3:
                raise Killed
            return super().draw(*arguments)

    with pytest.raises(Killed):
        train_brain_unet([head], parts, settings(), network=NETWORK, synthesis=Dies(shapes=((16, 16, 16),)))
    assert checkpoint_step(parts) == 2
    train_brain_unet([head], parts, settings(), network=NETWORK, synthesis=synthesis)
    assert checkpoint_step(parts) == 4
    first, second = (export_brain_unet(run, run / "model") / "model.safetensors" for run in (whole, parts))
    assert first.read_bytes() == second.read_bytes()


def test_a_checkpoint_of_another_network_is_refused(head, tmp_path, synthesis):
    train_brain_unet([head], tmp_path, settings(steps=1), network=NETWORK, synthesis=synthesis)
    other = {**NETWORK, "channels": [4, 8, 16]}
    with pytest.raises(TrainingFailed, match="checkpoint"):
        train_brain_unet([head], tmp_path, settings(steps=2), network=other, synthesis=synthesis)


def test_a_used_time_budget_ends_training_with_a_checkpoint(head, tmp_path, synthesis):
    train_brain_unet([head], tmp_path, settings(steps=10_000, minutes=1e-9), network=NETWORK, synthesis=synthesis)
    assert checkpoint_step(tmp_path) < 10_000


def test_export_is_what_the_extractor_loads(head, tmp_path, synthesis):
    train_brain_unet([head], tmp_path, settings(steps=1), network=NETWORK, synthesis=synthesis)
    folder = export_brain_unet(tmp_path, tmp_path / "model")
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "model.safetensors", "sha256sums.txt"]
    extractor = BrainExtractor.load(folder)
    assert extractor.config["network"] == NETWORK


def test_missing_data_is_named(tmp_path):
    with pytest.raises(TrainingFailed, match=r"participants\.csv"):
        load_heads(tmp_path, "train")
    with pytest.raises(TrainingFailed, match="at least one head"):
        train_brain_unet([], tmp_path, settings())
