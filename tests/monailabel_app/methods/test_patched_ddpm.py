"""Patched diffusion: a box is redrawn in clean surroundings, and the boxes make up the slice."""

import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods import patched_ddpm
from monailabel_app.methods.diffusion import DiffusionConfig, DiffusionEngine
from monailabel_app.methods.patched_ddpm import Config, box_masks, redraw_boxes


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(count=2, size=(16, 24)) -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(count, 1, *size, generator=seeded(7))


class Watcher:
    """A network that keeps what it sees and answers with an image of one value."""

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.seen, self.times = value, [], []

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        self.seen.append(noisy.clone())
        self.times.append(timesteps.clone())
        return torch.full_like(noisy, self.value)


@pytest.mark.parametrize("size", [(72, 96), (72, 80), (96, 80), (16, 25), (7, 9)])
@pytest.mark.parametrize("boxes", [(1, 1), (2, 2), (3, 4)])
def test_boxes_without_overlap_cover_each_pixel_once(size, boxes):
    masks = box_masks(size, boxes, 0.0)
    assert len(masks) == boxes[0] * boxes[1]
    assert torch.equal(masks.sum(0), torch.ones(size, dtype=torch.long))


@pytest.mark.parametrize("size", [(72, 96), (16, 25)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_overlapping_boxes_are_of_one_size_and_cover_the_slice(size, overlap):
    masks = box_masks(size, (2, 2), overlap)
    assert len(masks) > 4
    assert len({int(mask.sum()) for mask in masks}) == 1
    assert masks.sum(0).min() >= 1
    assert masks.sum(0).max() > 1


@pytest.mark.parametrize("wrong", [{"boxes": (0, 2)}, {"overlap": 1.0}, {"overlap": -0.1}])
def test_boxes_that_cannot_cover_a_slice_are_refused(wrong):
    with pytest.raises(InvalidSettings, match="expected at least one box"):
        Config(**wrong)


def test_more_boxes_than_pixels_are_refused():
    with pytest.raises(InvalidSettings, match="one box per pixel"):
        box_masks((4, 4), (5, 1), 0.0)


def test_training_noises_one_box_and_shows_the_rest_as_it_is():
    network, batch = Watcher(), slices(40)
    patched_ddpm.training_loss(network, Config(), batch, seeded())
    noisy, clean = network.seen[0], batch * 2 - 1
    masks = box_masks((16, 24), (2, 2), 0.0)
    chosen = set()
    for seen, true in zip(noisy[:, 0], clean[:, 0], strict=True):
        changed = seen != true
        fitting = [k for k, mask in enumerate(masks) if torch.equal(changed | mask, mask)]
        assert len(fitting) == 1
        assert changed[masks[fitting[0]]].float().mean() > 0.99
        chosen.add(fitting[0])
    assert chosen == {0, 1, 2, 3}


def test_the_loss_counts_the_box_alone():
    batch, config = slices(8), Config(boxes=(2, 1))
    boxes = box_masks((16, 24), (2, 1), 0.0)
    drawn = torch.randint(2, (8,), generator=seeded(4))

    def right_inside(wrong: float):
        def network(noisy, timesteps):
            return torch.where(boxes[drawn][:, None], batch * 2 - 1, wrong)

        return network

    assert patched_ddpm.training_loss(right_inside(9.0), config, batch, seeded(4)) == 0
    assert patched_ddpm.training_loss(Watcher(9.0), config, batch, seeded(4)) > 8


def test_each_box_is_redrawn_from_clean_surroundings_with_the_same_noise():
    engine, batch = DiffusionEngine(DiffusionConfig()), slices(3)
    masks, noise = box_masks((16, 24), (2, 2), 0.0), torch.randn(3, 1, 16, 24, generator=seeded(1))
    network = Watcher()
    redraw_boxes(network, engine, batch, masks, 0.7, noise)
    assert len(network.seen) == 1  # all boxes in one pass of the network
    seen = network.seen[0].reshape(4, 3, 16, 24)
    step = torch.full((3,), engine.timestep(0.7))
    whole, clean = engine.add_noise(batch * 2 - 1, step, noise)[:, 0], (batch * 2 - 1)[:, 0]
    for k, mask in enumerate(masks):
        assert torch.equal(seen[k][:, mask], whole[:, mask])
        assert torch.equal(seen[k][:, ~mask], clean[:, ~mask])
    assert torch.equal(network.times[0], step.repeat(4))


def test_stitching_takes_from_every_box_what_was_redrawn_there():
    engine, batch = DiffusionEngine(DiffusionConfig()), slices(2)
    masks = box_masks((16, 24), (2, 2), 0.0)

    def network(noisy, timesteps):
        numbers = torch.arange(4).repeat_interleave(2)
        return (numbers / 10).reshape(-1, 1, 1, 1).expand(noisy.shape)

    made = redraw_boxes(network, engine, batch, masks, 0.7, torch.zeros_like(batch))
    for k, mask in enumerate(masks):
        torch.testing.assert_close(made[:, 0][:, mask], torch.full_like(made[:, 0][:, mask], (k / 10 + 1) / 2))


def test_overlapping_boxes_are_averaged():
    engine, batch = DiffusionEngine(DiffusionConfig()), slices(1)
    masks = box_masks((16, 24), (1, 2), 0.5)
    assert len(masks) == 3

    def network(noisy, timesteps):
        return torch.tensor([0.0, 0.2, 0.6]).reshape(3, 1, 1, 1).expand(noisy.shape)

    made = redraw_boxes(network, engine, batch, masks, 0.7, torch.zeros_like(batch))[0, 0, 0] * 2 - 1
    expected = [0.0] * 6 + [0.1] * 6 + [0.4] * 6 + [0.6] * 6
    torch.testing.assert_close(made, torch.tensor(expected), atol=1e-6, rtol=0)


def test_an_analysis_costs_a_pass_per_box_and_draw_and_keeps_to_the_batch_size():
    config = Config(levels=(0.7,), draws=2)
    network = Watcher()
    image = torch.zeros(16, 24, 5)
    image[2:-2, 2:-2, 1:4] = 0.5
    output = patched_ddpm.analyse(network, config, image, image > 0, seeded(), batch_size=8)
    assert [len(seen) for seen in network.seen] == [8, 8, 4, 4]  # two slices, then one, of four boxes and two draws
    assert output.variance is not None
    assert len(output.draws) == 2
    assert (output.reconstruction[:, :, [0, 4]] == 0).all()
    assert patched_ddpm.light(config).draws == 1
