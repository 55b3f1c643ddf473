"""Thresholds side by side: nobody is judged at one that their own scans have moved."""

import json

import numpy as np
import pytest

from monailabel_app.metrics.case_histograms import quantile_bin, threshold_of
from monailabel_app.metrics.threshold_protocols import dices_at
from monailabel_app.pipelines.evaluation.figures import set_rows
from monailabel_app.pipelines.evaluation.measure import Measurement
from tests.monailabel_app.pipelines.evaluation.made_measurements import four_models, made

NAME = "signed/standard/own"


@pytest.fixture(scope="module")
def measurements():
    return four_models()


def test_the_healthy_quantile_of_a_case_is_that_of_other_people(measurements):
    record = json.loads(json.dumps(measurements[0].record))
    protocol = record["protocols"][NAME]
    for scan in protocol["healthy"]:
        scan["patient"] = "patient2"
    counts = measurements[0].healthy_counts[NAME].copy()
    counts[:] = np.roll(counts, 40, axis=1)
    protocol["healthy"][0]["patient"] = "somebody"
    counts[0] = measurements[0].healthy_counts[NAME][0]
    changed = Measurement(record, measurements[0].counts, {NAME: counts})
    found = set_rows([changed], "t1", resamples=5)[0]["thresholds"]["healthy_quantile"]
    own, others = (threshold_of(quantile_bin(values, 0.005)) for values in (counts, counts[:1]))
    assert own != others
    assert found["threshold"] == pytest.approx((7 * own + others) / 8)
    for scan in protocol["healthy"]:
        scan["patient"] = "patient2"
    found = set_rows([changed], "t1", resamples=5)[0]["thresholds"]["healthy_quantile"]
    assert found["source"] == "calibration"  # nobody else is healthy


def test_a_case_whose_lesions_the_grid_lost_has_no_dice_at_any_threshold(measurements):
    counts = measurements[0].counts[NAME].copy()
    counts[3, 1] += counts[3, 0]
    counts[3, 0] = 0
    changed = Measurement(measurements[0].record, {NAME: counts}, measurements[0].healthy_counts)
    found = set_rows([changed], "t1", resamples=5)[0]["thresholds"]["healthy_quantile"]
    dices = np.delete(dices_at(counts, found["threshold"]), 3)
    assert found["dice"]["value"] == pytest.approx(dices.mean())


def test_a_tuning_split_with_the_same_patients_does_not_tune(measurements):
    tuning = made("good_t1", "cold_diffusion", 3.0, seed=1, first_case=7)  # one of them is a case here
    tuned = set_rows(measurements[:1], "t1", tuning=[tuning], resamples=5)[0]["thresholds"]["label_tuned"]
    assert tuned["tuned_on"] == "other half of the patients"
