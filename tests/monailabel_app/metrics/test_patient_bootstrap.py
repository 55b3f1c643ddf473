"""Weights that stand for resampled patients: all scans of one together, lesioned and healthy people never mixed up."""

import numpy as np
import pytest
from scipy import stats

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.case_histograms import aurocs, average_precisions, count_voxels
from monailabel_app.metrics.imagewise import scan_auroc
from monailabel_app.metrics.intervals import bootstrap_interval
from monailabel_app.metrics.patient_bootstrap import (
    expanded_level,
    limits,
    patient_weights,
    pooled_precisions,
    pooled_statistics,
    weighted_aurocs,
    weighted_means,
    weighted_ratio,
)


def test_scans_of_one_patient_are_drawn_together_and_each_group_keeps_its_size():
    cases, healthy = patient_weights(["a", "a", "b", "c"], ["a", "x", "y"], resamples=300)
    assert cases.shape == (301, 4)
    assert (cases[0] == 1).all()
    assert (healthy[0] == 1).all()
    np.testing.assert_array_equal(cases[:, 0], cases[:, 1])
    np.testing.assert_array_equal(cases[:, 0], healthy[:, 0])
    assert (cases[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (healthy[:, 1:].sum(axis=1) == 2).all()


def test_the_interval_of_a_mean_is_the_plain_bootstrap_s():
    values = np.random.default_rng(0).normal(size=40)
    weights, _ = patient_weights([str(i) for i in range(40)], resamples=4000)
    plain = bootstrap_interval(lambda v: float(v.mean()), values, generator=np.random.default_rng(1), resamples=4000)
    means = weighted_means(weights, values)
    assert means[0] == pytest.approx(values.mean())
    np.testing.assert_allclose(limits(means), (plain.low, plain.high), atol=0.03)


def test_pooled_precision_weighs_whole_cases():
    generator = np.random.default_rng(0)
    truth = np.zeros((6, 6, 6), bool)
    truth[2:4, 2:4, 2:4] = True
    counts = np.stack(
        [count_voxels(np.abs(generator.normal(size=truth.shape) + truth), truth, np.ones_like(truth)) for _ in range(3)]
    )
    weights = np.array([[1.0, 1, 1], [2, 0, 1]])
    pooled, _ = pooled_precisions(weights, counts)
    expected = [average_precisions(counts.sum(0)), average_precisions(2 * counts[0] + counts[2])]
    np.testing.assert_allclose(pooled, expected)
    (ranks,) = pooled_statistics(weights, counts, aurocs)
    np.testing.assert_allclose(ranks, [aurocs(counts.sum(0)), aurocs(2 * counts[0] + counts[2])])


def test_a_weighted_auroc_repeats_scans_as_often_as_they_were_drawn():
    lesioned, healthy = [0.2, 0.9, 0.5], [0.1, 0.5]
    made = weighted_aurocs(np.array([[1, 1, 1], [0, 2, 1]]), lesioned, np.array([[1, 1], [2, 0]]), healthy)
    assert made[0] == pytest.approx(scan_auroc(healthy, lesioned))
    assert made[1] == pytest.approx(scan_auroc([0.1, 0.1], [0.9, 0.9, 0.5]))


def test_scans_without_a_value_are_left_out():
    assert weighted_means(np.ones((1, 3)), [1.0, np.nan, 3.0])[0] == pytest.approx(2)
    assert np.isnan(weighted_ratio(np.ones((1, 2)), [0, 0], [0, 0])[0])
    assert np.isnan(limits(np.array([1.0, np.nan, np.nan]))).all()


def test_nothing_to_resample_is_an_error():
    with pytest.raises(InvalidSettings, match="at least one case"):
        patient_weights([])


@pytest.mark.parametrize("people", [5, 8, 20])
def test_the_expanded_interval_of_a_mean_is_about_student_s(people):
    """The bootstrap of a mean is nearly normal, so the expanded percentiles are those of the t distribution."""
    values = stats.norm.ppf((np.arange(people) + 0.5) / people)
    weights, _ = patient_weights([str(i) for i in range(people)], resamples=40_000)
    low, high = limits(weighted_means(weights, values), expanded_level(people))
    expected = stats.t.interval(0.95, people - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose((low, high), expected, rtol=0.1)
    assert expanded_level(10_000) == pytest.approx(0.95, abs=1e-4)
    assert expanded_level(1) == 1
