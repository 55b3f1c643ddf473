"""Thresholds of three origins: tuned ones never see the patient they are applied to."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from monailabel_app.errors import InvalidSettings
from monailabel_app.metrics.case_histograms import count_voxels, dices_above
from monailabel_app.metrics.threshold_protocols import cross_fitted, dices_at, tuned_elsewhere


def case(seed: int, contrast: float = 2.0):
    generator = np.random.default_rng(seed)
    truth = np.zeros((12, 12, 12), bool)
    truth[3:7, 4:8, 5:8] = True
    scores = np.abs(generator.normal(size=truth.shape) + contrast * truth).astype(np.float32)
    return scores, truth


def counted(*cases):
    return np.stack([count_voxels(scores, truth, np.ones_like(truth)) for scores, truth in cases])


def test_the_dice_of_each_case_is_the_direct_one():
    cases = [case(seed) for seed in range(3)]
    found = dices_at(counted(*cases), 1.5)
    expected = [f1_score(truth.ravel(), (scores >= 1.5).ravel()) for scores, truth in cases]
    np.testing.assert_allclose(found, expected, atol=1e-12)  # 1.5 is the edge of a bin


def test_the_tuned_threshold_is_the_best_of_the_other_cases():
    tuning = [case(seed) for seed in range(4)]
    found = tuned_elsewhere(counted(case(9)), counted(*tuning))
    tried = np.linspace(0.5, 3.5, 301)
    means = [np.mean([f1_score(t.ravel(), (s >= x).ravel()) for s, t in tuning]) for x in tried[::10]]
    assert dices_at(counted(*tuning), found.thresholds[0]).mean() >= max(means) - 1e-9
    scores, truth = case(9)
    assert found.dices[0] == pytest.approx(f1_score(truth.ravel(), (scores >= found.thresholds[0]).ravel()))


def test_halves_tune_each_other_and_scans_of_one_patient_stay_together():
    faint, strong = [case(seed, 1.5) for seed in range(2)], [case(seed, 6.0) for seed in range(2, 4)]
    counts, patients = counted(*faint, *strong), ["a", "a", "b", "b"]
    found = cross_fitted(counts, patients)
    own = tuned_elsewhere(counts[:2], counts[2:]), tuned_elsewhere(counts[2:], counts[:2])
    assert sorted(found.thresholds) == sorted(o.thresholds[0] for o in own)
    np.testing.assert_array_equal(found.dices, np.concatenate([o.dices for o in own]))
    assert found.dices.mean() < dices_above(counts)[:, 1:].max(axis=1).mean()


def test_the_seed_decides_the_halves():
    counts, patients = counted(*(case(seed, 1 + 0.3 * seed) for seed in range(8))), list("abcdefgh")
    first = cross_fitted(counts, patients, seed=3)
    assert first.thresholds == cross_fitted(counts, patients, seed=3).thresholds
    assert len({cross_fitted(counts, patients, seed=seed).thresholds for seed in range(6)}) > 1


def test_without_other_patients_or_lesions_there_is_nothing_to_tune():
    counts = counted(case(0), case(1))
    assert cross_fitted(counts, ["a", "a"]) is None
    scores, truth = case(1)
    empty = counted((scores, np.zeros_like(truth)))
    assert cross_fitted(np.concatenate([counts[:1], np.zeros_like(empty)]), ["a", "b"]) is None
    with pytest.raises(InvalidSettings, match="labelled lesion"):
        tuned_elsewhere(counts, np.zeros_like(empty))
