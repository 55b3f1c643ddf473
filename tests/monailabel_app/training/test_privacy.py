"""Private training: it stays within its budget, goes on after a stop as if there had been none, and tells no loss."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.registry import METHODS, load_method
from monailabel_app.training import privacy as module
from monailabel_app.training.augment import AugmentConfig, augment
from monailabel_app.training.checkpoint import PREVIOUS, load_state
from monailabel_app.training.patient_gradients import PatientPool, private_generators
from monailabel_app.training.privacy import PrivacySettings, feasibility_of, privacy_report, train_private
from monailabel_app.types import to_json
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache

CONFIG = TINY["ddpm"]
SETTINGS = replace(TINY_TRAINING, weight_decay=0.0)
PRIVATE = PrivacySettings(steps=6, slices_per_patient=2, patients_per_step=2, learning_rate=1e-3, warmup=1, seed=1)


class Stopped(Exception):
    """What an interruption raises."""


@pytest.fixture(scope="module")
def cache():
    return random_cache(5)


def start(method_id="ddpm"):
    torch.manual_seed(0)
    network = load_method(method_id).build(TINY[method_id])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.state_dict()


def run(folder, cache, *, settings=SETTINGS, privacy=PRIVATE, method_id="ddpm", stop_at=None, told=None, **options):
    def progress(now):
        if told is not None:
            told.append(now)
        if now.step == stop_at:
            raise Stopped

    options = {"start_from": start(method_id), **options}
    return train_private(method_id, TINY[method_id], cache, settings, privacy, folder, progress=progress, **options)


def assert_same(a, b):
    assert (a.step, a.history, a.settings) == (b.step, b.history, b.settings)
    for part in ("model", "ema"):
        left, right = getattr(a, part), getattr(b, part)
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method_id", [name for name, info in METHODS.items() if info.private])
def test_every_method_can_be_trained_privately_and_only_the_chosen_part_moves(tmp_path, cache, method_id):
    state = run(tmp_path, cache, method_id=method_id, settings=replace(SETTINGS, amp=True))
    before = start(method_id)
    moved = {name for name, value in state.model.items() if not torch.equal(value, before[name])}
    network = load_method(method_id).build(TINY[method_id])
    assert moved == set(module.choose_trainable(network, PRIVATE.trainable))
    assert state.step == 6
    assert all(torch.isfinite(value).all() for value in state.ema.values())


def test_a_step_is_the_clipped_mean_gradients_of_the_patients_drawn(tmp_path, cache, monkeypatch):
    # No noise and plain descent; everything else is computed again here, patient by patient.
    monkeypatch.setattr(module, "noise_multiplier_for", lambda *_: 0.0)
    monkeypatch.setattr(module, "spent", lambda *_, **__: module.accounting.Spent(1, 1, 1, 1, 1, 1, 1))
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, weight_decay, betas: torch.optim.SGD(p, lr=lr))
    privacy = replace(PRIVATE, steps=1, trainable="all", slices_per_patient=3, max_grad_norm=0.35, patients_per_step=4)
    state = run(tmp_path, cache, privacy=privacy)

    method, network = load_method("ddpm"), load_method("ddpm").build(CONFIG)
    network.load_state_dict(start())
    pool, (draws, _) = PatientPool(cache, torch.device("cpu")), private_generators(privacy.seed, torch.device("cpu"))
    total, norms = [torch.zeros_like(p) for p in network.parameters()], []
    for patient in pool.sample(4 / 5, draws):
        slices = augment(pool.slices(patient, 3, 1, draws), AugmentConfig(), draws)
        loss = method.training_loss(network, CONFIG, slices, draws)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        norms.append(norm)
        for kept, gradient in zip(total, gradients, strict=True):
            kept += gradient * min(1.0, 0.35 / norm)
    assert min(norms) < 0.35 < max(norms)
    for (name, parameter), step in zip(network.named_parameters(), total, strict=True):
        moved = parameter.detach() - state.model[name]
        torch.testing.assert_close(moved, 1e-3 * step / 4, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("stop_at", [2, 4])
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(tmp_path, cache, stop_at):
    whole = run(tmp_path / "whole", cache)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", cache, stop_at=stop_at)
    assert load_state(tmp_path / "parts").step == stop_at
    # The state comes from the checkpoint: another seed, as the operating system would give, changes nothing.
    resumed = run(tmp_path / "parts", cache, resume=True, privacy=replace(PRIVATE, seed=99))
    assert_same(resumed, whole)
    assert [entry["step"] for entry in resumed.history] == [2, 4, 6]


def test_noise_is_never_used_again_with_other_scans_or_settings(tmp_path, cache):
    with pytest.raises(Stopped):
        run(tmp_path, cache, stop_at=2)
    changed = replace(cache, images=cache.images.clone())
    changed.images[0, 16, 20, 16] ^= 1
    with pytest.raises(TrainingFailed, match="same noise on other scans"):
        run(tmp_path, changed, resume=True)
    owners = replace(cache, patients=(*cache.patients[1:], cache.patients[0]))
    with pytest.raises(TrainingFailed, match="same noise on other scans"):
        run(tmp_path, owners, resume=True)
    with pytest.raises(TrainingFailed, match="same private training"):
        run(tmp_path, cache, resume=True, privacy=replace(PRIVATE, epsilon=9))
    other = {name: value + 1 for name, value in start().items()}
    with pytest.raises(TrainingFailed, match="same private training"):
        run(tmp_path, cache, resume=True, start_from=other)


def test_an_ended_run_keeps_nothing_that_the_noise_could_be_told_from(tmp_path, cache):
    with pytest.raises(Stopped):
        run(tmp_path, cache, stop_at=4)
    running = load_state(tmp_path)
    assert running.generator.numel() > 0
    assert "data" in running.settings
    assert (tmp_path / PREVIOUS).exists()
    run(tmp_path, cache, resume=True)
    ended = load_state(tmp_path)
    assert ended.generator.numel() == 0
    assert "data" not in ended.settings
    assert not (tmp_path / PREVIOUS).exists()
    assert "seed" not in ended.settings["privacy"]
    assert_same(run(tmp_path, cache, resume=True), ended)


def test_the_budget_spent_is_the_one_asked_for_and_the_card_says_how(tmp_path, cache):
    state = run(tmp_path, cache)
    report = privacy_report(state)
    assert 7.99 < report["epsilon"] <= 8
    assert report["epsilon_prv"] < report["epsilon"]
    assert state.history[-1]["epsilon"] == pytest.approx(report["epsilon"])
    assert [e["epsilon"] for e in state.history] == sorted(e["epsilon"] for e in state.history)
    assert (report["sample_rate"], report["steps"], report["unit"]) == (0.4, 6, "patient")
    assert report["mu"] == pytest.approx(0.4 * math.sqrt(6 * math.expm1(report["noise_multiplier"] ** -2)))
    assert report["guarantee"] is False  # the seed of a test is known
    assert json.loads(json.dumps(to_json(report))) == to_json(report)


def test_without_a_seed_two_runs_differ_and_the_guarantee_holds(tmp_path, cache):
    unseeded = replace(PRIVATE, seed=None, steps=1)
    first, second = (run(tmp_path / name, cache, privacy=unseeded) for name in "ab")
    name = "unet.out.2.conv.weight"
    assert not torch.equal(first.model[name], second.model[name])
    assert privacy_report(first)["guarantee"] is True


def test_a_run_out_of_time_has_spent_less_and_is_over(tmp_path, cache):
    state = run(tmp_path, cache, settings=replace(SETTINGS, minutes=1e-9))
    assert state.step == 1
    assert 0 < privacy_report(state)["epsilon"] < 5
    assert_same(run(tmp_path, cache, resume=True), state)


def test_no_step_is_left_out_when_nobody_was_drawn(tmp_path, cache):
    pool = PatientPool(cache, torch.device("cpu"))
    seed = next(s for s in range(100) if not pool.sample(1 / 5, private_generators(s, torch.device("cpu"))[0]))
    state = run(tmp_path, cache, privacy=replace(PRIVATE, patients_per_step=1, steps=1, seed=seed))
    assert (state.step, state.averaged) == (1, 1)
    assert state.history[-1]["epsilon"] == pytest.approx(8, abs=0.01)
    name = "unet.out.2.conv.weight"
    assert not torch.equal(state.model[name], start()[name])  # noise alone


def test_the_loss_of_the_patients_is_nowhere(tmp_path, cache):
    told = []
    state = run(tmp_path, cache, told=told)
    assert [now.step for now in told] == [2, 4, 6]
    assert all(math.isnan(now.loss) and now.validation_loss is None for now in told)
    assert told[-1].figures["epsilon"] == pytest.approx(8, abs=0.01)
    assert told[-1].share == 1
    assert set(state.history[-1]) == {"step", "epsilon", "mu", "noise_multiplier", "sample_rate"}
    assert state.recent == []


def test_more_copies_of_a_slice_cost_no_budget(tmp_path, cache):
    once, twice = (privacy_report(run(tmp_path / str(n), cache, privacy=replace(PRIVATE, augmentations=n, steps=1)))
                   for n in (1, 2))  # fmt: skip
    assert once["noise_multiplier"] == twice["noise_multiplier"]
    assert twice["augmentations"] == 2


@pytest.mark.parametrize("weights", [None, {}])
def test_without_public_weights_it_is_refused_with_the_reason(tmp_path, cache, weights):
    with pytest.raises(TrainingFailed, match=r"public weights .* the noise drowns"):
        run(tmp_path, cache, start_from=weights)


def test_weights_of_another_network_are_refused(tmp_path, cache):
    with pytest.raises(TrainingFailed, match="start weights of the same network"):
        run(tmp_path, cache, start_from={"weight": torch.zeros(1)})


def test_batch_normalisation_is_refused_by_name(tmp_path, cache, monkeypatch):
    class WithBatchNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    monkeypatch.setattr(load_method("ddpm"), "build", lambda config: WithBatchNorm())
    with pytest.raises(InvalidSettings, match=r"group normalisation only .* stem\.1 \(BatchNorm2d\)"):
        run(tmp_path, cache, start_from=WithBatchNorm().state_dict())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"patients_per_step": 6}, InvalidSettings, "at most 5 patients"),
        ({"delta": 0.3}, InvalidSettings, "one over the number of patients, 0.2"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(tmp_path, cache, changes, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, cache, privacy=replace(PRIVATE, **changes))


def test_one_patient_alone_cannot_hide(tmp_path, cache):
    alone = replace(cache, patients=("a",) * len(cache))
    with pytest.raises(TrainingFailed, match="at least 2 patients"):
        run(tmp_path, alone)


def test_weights_that_are_not_finite_stop_the_run(tmp_path, cache):
    with pytest.raises(TrainingFailed, match="finite weights"):
        run(tmp_path, cache, start_from={name: value * math.inf for name, value in start().items()})


def test_the_table_before_a_run_holds_the_chosen_budget(cache):
    rows = feasibility_of("ddpm", CONFIG, replace(PRIVATE, epsilon=2, steps=6, patients_per_step=None), 40)
    assert (2.0, 6) in [(row.epsilon, row.steps) for row in rows]
    assert all(row.run_signal is not None for row in rows)


def test_the_state_of_another_training_has_no_report(tmp_path, cache):
    state = run(tmp_path, cache, privacy=replace(PRIVATE, steps=1))
    del state.settings["privacy"]
    with pytest.raises(TrainingFailed, match="private training"):
        privacy_report(state)
