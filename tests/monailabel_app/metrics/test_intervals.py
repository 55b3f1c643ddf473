"""Bootstrap intervals against worked examples and theory."""

import math

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.imagewise import scan_auroc
from monailabel_app.metrics.intervals import bootstrap_interval


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_interval_of_a_mean_agrees_with_the_standard_error():
    values = seeded(1).normal(5, 2, 400)
    interval = bootstrap_interval(np.mean, values, generator=seeded(), resamples=3000)
    error = values.std() / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_a_lower_level_gives_a_narrower_interval():
    values = seeded(1).normal(size=50)
    wide, narrow = (bootstrap_interval(np.mean, values, generator=seeded(), level=v) for v in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_groups_are_resampled_separately_and_one_patient_each_has_no_spread():
    interval = bootstrap_interval(
        scan_auroc, np.array([1.0]), np.array([2.0]), generator=seeded(), resamples=50
    )
    assert interval == (1, 1, 1, 50)


def test_rows_of_one_patient_stay_together():
    rows = np.stack([np.arange(6.0), 10 * np.arange(6.0)], axis=1)

    def ratio(sample: np.ndarray) -> float:
        assert (sample[:, 1] == 10 * sample[:, 0]).all()
        return sample.mean()

    assert bootstrap_interval(ratio, rows, generator=seeded(), resamples=20).resamples == 20


def test_any_objects_can_be_patients():
    patients = [{"hits": 1}, {"hits": 3}]
    interval = bootstrap_interval(
        lambda group: sum(p["hits"] for p in group) / len(group), patients, generator=seeded(), resamples=200
    )
    assert interval[:3] == (2, 1, 3)


def test_resamples_without_a_value_are_left_out_and_counted():
    def undefined_without_ones(sample: np.ndarray) -> float:
        return sample.mean() if (sample == 1).any() else float("nan")

    interval = bootstrap_interval(undefined_without_ones, np.array([0, 1]), generator=seeded(), resamples=400)
    assert 250 < interval.resamples < 350
    assert interval.low >= 0.5
    never = bootstrap_interval(lambda _: float("nan"), [1, 2], generator=seeded(), resamples=5)
    assert never.resamples == 0
    assert math.isnan(never.low)


def test_the_seed_decides_the_interval():
    values = seeded(1).normal(size=30)
    assert bootstrap_interval(np.mean, values, generator=seeded(3)) == bootstrap_interval(
        np.mean, values, generator=seeded(3)
    )


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidSettings, match="patient"):
        bootstrap_interval(np.mean, np.array([]), generator=seeded())
    with pytest.raises(InvalidSettings, match="level"):
        bootstrap_interval(np.mean, np.array([1.0]), generator=seeded(), level=1)
