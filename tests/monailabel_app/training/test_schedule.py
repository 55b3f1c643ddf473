"""Schedule: whichever limit ends first, with times and counts that are always finite."""

import math

import pytest
import torch

from monailabel_app.training.schedule import Budget, averaged, learning_rate
from monailabel_app.training.settings import TrainSettings


def budget(**limits):
    return Budget(TrainSettings(batch_size=10, **limits), slices=100)


@pytest.mark.parametrize(
    ("limits", "step", "seconds", "share"),
    [
        ({"steps": 50}, 25, 9.0, 0.5),
        ({"steps": 50, "minutes": 1}, 10, 45.0, 0.75),
        ({"steps": 10**7, "max_epochs": 4}, 10, 1.0, 0.25),
        ({"steps": 20, "max_epochs": 4, "minutes": 1}, 20, 6.0, 1.0),
    ],
)
def test_the_share_is_that_of_the_limit_nearest_to_its_end(limits, step, seconds, share):
    assert budget(**limits).share(step, seconds) == pytest.approx(share)


@pytest.mark.parametrize(
    ("limits", "steps", "left"),
    [
        ({"steps": 50}, 50, 20.0),
        ({"steps": 10**7, "max_epochs": 2.5}, 25, 7.5),
        ({"steps": 10**7, "minutes": 0.5}, 50, 20.0),
        ({"steps": 10**7, "minutes": 0.1}, 10, 0.0),
    ],
)
def test_steps_and_time_left_follow_the_limit_that_comes_first(limits, steps, left):
    made = budget(**limits)
    assert made.expected_steps(10, 10.0, 2.0) == steps
    assert made.seconds_left(10, 10.0, 2.0) == pytest.approx(left)


def test_time_left_is_finite_without_any_speed():
    assert math.isfinite(budget(steps=10**7).seconds_left(0, 0.0, 0.0))


def test_epochs_count_slices():
    made = budget(steps=50)
    assert [made.epochs(step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]
    assert (made.total_epochs(25), made.total_epochs(1)) == (3, 1)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    settings = TrainSettings(learning_rate=0.1, warmup=10)
    rates = [learning_rate(settings, step, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert rates.index(max(rates)) in range(8, 12)
    assert rates[500] == pytest.approx(0.05)
    assert rates[-1] == 0


def test_a_young_average_decays_fast_and_an_old_one_as_asked():
    model = torch.nn.Linear(1, 1, bias=False)
    average = averaged(model, 0.9)

    def update(value):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        return float(average.module.weight.detach())

    assert update(1.0) == 1.0
    assert update(0.0) == pytest.approx(2 / 11)
    average.n_averaged.fill_(1000)
    before = float(average.module.weight.detach())
    assert update(0.0) == pytest.approx(0.9 * before)
    assert not average.module.training
