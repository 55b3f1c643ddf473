"""Checkpoints: complete, written by rename, and refused when damaged."""

import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.training.checkpoint import LAST, TrainingState, load_state, save_state


def state(step=3) -> TrainingState:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, betas=(0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainingState(
        model={name: value.detach() for name, value in layer.state_dict().items()},
        ema={name: value.detach() + 1 for name, value in layer.state_dict().items()},
        optimizer=optimizer.state_dict(),
        generator=torch.Generator().manual_seed(11).get_state(),
        step=step,
        seconds=1.5,
        history=[{"step": 2, "loss": 0.25}],
        settings={"method": "ddpm", "config": {"levels": [0.7]}},
    )


def test_everything_comes_back(tmp_path):
    made = state()
    save_state(tmp_path, made)
    back = load_state(tmp_path)
    assert (back.step, back.seconds, back.history, back.settings) == (3, 1.5, made.history, made.settings)
    assert torch.equal(back.generator, made.generator)
    for name, value in made.model.items():
        assert torch.equal(back.model[name], value)
        assert torch.equal(back.ema[name], value + 1)
    for index, slots in made.optimizer["state"].items():
        for slot, value in slots.items():
            assert torch.equal(back.optimizer["state"][index][slot], torch.as_tensor(value))
    layer = torch.nn.Linear(3, 2)
    fresh = torch.optim.AdamW(layer.parameters(), lr=9.0)
    fresh.load_state_dict(back.optimizer)
    assert fresh.param_groups[0]["lr"] == 1e-3
    assert tuple(fresh.param_groups[0]["betas"]) == (0.9, 0.99)


def test_a_half_written_file_beside_it_does_not_matter(tmp_path):
    save_state(tmp_path, state())
    (tmp_path / (LAST + ".partial")).write_bytes(b"\x00" * 100)
    assert load_state(tmp_path).step == 3
    save_state(tmp_path, state(step=4))
    assert load_state(tmp_path).step == 4


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_cut_checkpoint_is_refused_by_name(tmp_path, keep):
    path = save_state(tmp_path, state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingFailed, match=r"last\.safetensors"):
        load_state(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingFailed, match="found none"):
        load_state(tmp_path)
