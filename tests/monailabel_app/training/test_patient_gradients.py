"""The noisy step: whole patients are clipped, nobody exceeds C, the noise is as large as stated."""

import math
from contextlib import nullcontext

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from monailabel_app.errors import InvalidSettings
from monailabel_app.registry import METHODS, load_method
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.patient_gradients import (
    PatientPool,
    add_patient,
    backward,
    choose_trainable,
    noisy_step,
    private_generators,
    refuse_batch_statistics,
)
from tests.monailabel_app.synthetic import TINY

CPU = torch.device("cpu")
CLIP = 2.0


class Squares:
    """A method without noise: the mean squared difference of a network's answer from its input."""

    @staticmethod
    def training_loss(network, config, batch, generator):
        return (network(batch) - batch).square().mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))


def patients(count=5, slices=3) -> list[torch.Tensor]:
    """Slices of patients whose gradients differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(slices, 1, 8, 8, generator=generator) * 4.0**i / 30 for i in range(count)]


def dp_optimizer(model, *, noise=0.0, expected=4, clip=CLIP, seed=0):
    return DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=expected,
        generator=torch.Generator().manual_seed(seed),
    )


def own_gradient(model, slices) -> torch.Tensor:
    """The flat gradient of one patient's mean loss, by plain differentiation of all slices at once."""
    loss = Squares.training_loss(model, None, slices, None)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def take_step(model, optimizer, people, piece=2):
    for slices in people:
        backward(Squares, model, None, slices, None, piece, nullcontext)
        add_patient(optimizer)
    noisy_step(optimizer)


def test_a_step_is_the_sum_of_the_clipped_gradients_of_patients_over_their_expected_number():
    model, people = network(), patients()
    gradients = [own_gradient(model, slices) for slices in people]
    norms = [float(g.norm()) for g in gradients]
    assert min(norms) < CLIP < max(norms)
    expected = sum(g * min(1.0, CLIP / n) for g, n in zip(gradients, norms, strict=True)) / 4
    before = weights(model)
    take_step(model, dp_optimizer(model), people)
    torch.testing.assert_close(before - weights(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("piece", [1, 2, 3, 50])
def test_the_size_of_the_pieces_changes_nothing(piece):
    steps = []
    for size in (3, piece):
        model = network()
        take_step(model, dp_optimizer(model), patients(), size)
        steps.append(weights(model))
    torch.testing.assert_close(*steps)


def test_no_patient_adds_more_than_the_clipping_norm_however_loud():
    _, quiet, *_, loud = patients()
    for slices, reaches in ((quiet, False), (loud, True), (loud * 1e6, True)):
        model = network()
        before = weights(model)
        take_step(model, dp_optimizer(model, expected=1), [slices])
        norm = float((weights(model) - before).norm())
        assert norm <= CLIP * (1 + 1e-5)  # rounding of the weights
        assert (norm > 0.99 * CLIP) == reaches


def test_a_patient_with_more_slices_adds_no_more():
    one = patients()[-1]
    moved = []
    for slices in (one, one.repeat(4, 1, 1, 1)):
        model = network()
        before = weights(model)
        take_step(model, dp_optimizer(model), [slices])
        moved.append(weights(model) - before)
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-6)


def test_a_patient_whose_gradient_is_not_finite_adds_nothing():
    one, *_, other = patients()
    broken = torch.full_like(other, math.nan)
    alone, together = network(), network()
    take_step(alone, dp_optimizer(alone), [one])
    take_step(together, dp_optimizer(together), [one, broken])
    assert torch.equal(weights(alone), weights(together))


def test_an_empty_draw_is_a_step_of_noise_with_the_stated_deviation():
    model = nn.Linear(200, 200, bias=False)
    optimizer = dp_optimizer(model, noise=2.5, expected=8, clip=0.1)
    before = weights(model)
    noisy_step(optimizer)
    moved = before - weights(model)
    stated = 2.5 * 0.1 / 8
    assert float(moved.std()) == pytest.approx(stated, rel=0.02)
    assert abs(float(moved.mean())) < 4 * stated / math.sqrt(moved.numel())


def test_the_noise_is_new_at_every_step():
    model = nn.Linear(50, 50, bias=False)
    optimizer = dp_optimizer(model, noise=1.0)
    points = [weights(model)]
    for _ in range(2):
        noisy_step(optimizer)
        points.append(weights(model))
    first, second = points[1] - points[0], points[2] - points[1]
    assert abs(float(nn.functional.cosine_similarity(first, second, dim=0))) < 0.1


@pytest.mark.parametrize("method_id", [name for name, info in METHODS.items() if info.private])
def test_a_patients_gradient_is_the_mean_of_the_slices_gradients_of_opacus(method_id):
    method, config = load_method(method_id), TINY[method_id]
    torch.manual_seed(0)
    model = method.build(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # layers that start at zero would pass nothing on
    refuse_batch_statistics(model)
    assert not GradSampleModule.validate(model)
    slices = torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(2))
    backward(method, model, config, slices, torch.Generator().manual_seed(1), 8, nullcontext)
    own = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    wrapped = GradSampleModule(model)
    method.training_loss(wrapped, config, slices, torch.Generator().manual_seed(1)).backward()
    largest = max(float(g.norm()) for g in own)
    for parameter, gradient in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad_sample.mean(0), gradient, rtol=1e-3, atol=1e-6 * largest)


def test_layers_that_remember_their_batches_are_refused_by_name():
    bad = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    with pytest.raises(InvalidSettings, match=r"1\.0 \(BatchNorm2d\)"):
        refuse_batch_statistics(bad)
    with pytest.raises(InvalidSettings, match="InstanceNorm2d"):
        refuse_batch_statistics(nn.InstanceNorm2d(2, track_running_stats=True))
    refuse_batch_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))


def test_only_the_chosen_part_is_tuned():
    model = load_method("ddpm").build(TINY["ddpm"])
    chosen = {part: choose_trainable(model, part) for part in ("last", "attention_and_last", "all")}
    assert chosen["last"] == ["unet.out.0.weight", "unet.out.0.bias", "unet.out.2.conv.weight", "unet.out.2.conv.bias"]
    assert set(chosen["last"]) < set(chosen["attention_and_last"]) < set(chosen["all"])
    assert all("attention" in n for n in set(chosen["attention_and_last"]) - set(chosen["last"]))
    assert chosen["all"] == [name for name, _ in model.named_parameters()]
    choose_trainable(model, "last")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == chosen["last"]
    with pytest.raises(InvalidSettings, match="encoder"):
        choose_trainable(model, "encoder")


def cache(levels=(4, 2, 0), scans=(2, 1, 1)) -> TrainingCache:
    """Patients a, b, c with these numbers of scans, each with so many slices of brain; a voxel tells whose it is."""
    owners = [name for name, count in zip("abc", scans, strict=True) for _ in range(count)]
    images = torch.zeros(len(owners), 8, 8, 6, dtype=torch.uint8)
    for row, owner in enumerate(owners):
        images[row, ..., : levels["abc".index(owner)]] = 51 * (1 + "abc".index(owner))
    ids = tuple(f"s{i}" for i in range(len(owners)))
    return TrainingCache(images, images > 0, ids, "t1", tuple(owners))


def test_slices_are_the_patients_own_from_all_its_scans():
    pool, generator = PatientPool(cache(), CPU), torch.Generator().manual_seed(0)
    assert len(pool) == 3
    assert pool.slices(0, 8, 1, generator).shape == (8, 1, 8, 8)
    for patient in (0, 1):
        drawn = pool.slices(patient, 5, 2, generator)
        assert len(drawn) == 10
        torch.testing.assert_close(drawn, torch.full_like(drawn, (1 + patient) / 5))
    assert len(pool.slices(2, 5, 1, generator)) == 0


def test_every_patient_is_drawn_independently_at_the_stated_rate():
    pool, generator = PatientPool(cache(), CPU), torch.Generator().manual_seed(0)
    draws = [pool.sample(0.3, generator) for _ in range(3000)]
    sizes = torch.tensor([len(d) for d in draws])
    for patient in range(3):
        assert sum(patient in d for d in draws) / 3000 == pytest.approx(0.3, abs=0.04)
    for size in range(4):  # binomial, the empty draw included
        assert float((sizes == size).float().mean()) == pytest.approx(
            math.comb(3, size) * 0.3**size * 0.7 ** (3 - size), abs=0.04
        )
    assert pool.sample(1.0, generator) == [0, 1, 2]


def test_without_a_seed_no_two_generators_agree_and_the_noise_is_normal():
    generators = [*private_generators(None, CPU), *private_generators(None, CPU)]
    drawn = [torch.randn(20_000, generator=g) for g in generators]
    for i, one in enumerate(drawn):
        assert float(one.std()) == pytest.approx(1, abs=0.03)
        assert abs(float(one.mean())) < 0.03
        assert all(abs(float((one * other).mean())) < 0.04 for other in drawn[:i])


def test_more_of_the_entropy_than_a_seed_is_used():
    # With the generator's seed alone known the state would be known too.
    generator, _ = private_generators(None, CPU)
    again = torch.Generator().manual_seed(generator.initial_seed())
    assert not torch.equal(torch.rand(5, generator=generator), torch.rand(5, generator=again))


def test_a_seed_repeats_and_its_two_generators_differ():
    (a, b), (c, d) = private_generators(3, CPU), private_generators(3, CPU)
    first, second = torch.rand(5, generator=a), torch.rand(5, generator=b)
    assert torch.equal(first, torch.rand(5, generator=c))
    assert torch.equal(second, torch.rand(5, generator=d))
    assert not torch.equal(first, second)
