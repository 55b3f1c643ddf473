"""The record of an evaluation: every figure from the scans it claims, the same patients for all, nothing unsaid."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.case_histograms import average_precisions
from monailabel_app.metrics.rodeo import RodeoSums
from monailabel_app.pipelines.evaluation.figures import evaluation_record, set_rows
from monailabel_app.pipelines.evaluation.measure import Measurement
from tests.monailabel_app.pipelines.evaluation.made_measurements import SHAPE, four_models, made, map_of, truth_of

NAME = "signed/standard/own"


@pytest.fixture(scope="module")
def measurements():
    return four_models(split="test", licence="CC0", skipped=[{"id": "scan7", "reason": "truncated"}])


@pytest.fixture(scope="module")
def record(measurements):
    return evaluation_record(measurements, resamples=300, command="evaluate", failed=[{"model": "x", "set": "all"}])


@pytest.fixture(scope="module")
def rows(record):
    return {row["model"]: row for row in record["sets"][0]["rows"]}


def cases_of(measurement):
    return measurement.record["protocols"][NAME]["cases"]


def test_the_record_is_plain_json_with_every_part(record):
    assert json.loads(json.dumps(record)) == record
    entry = record["sets"][0]
    assert (entry["name"], entry["split"], entry["licence"]) == ("made_t1", "test", "CC0")
    assert (entry["cases"], entry["patients"], entry["healthy"]) == (8, 8, 6)
    assert entry["skipped"] == [{"id": "scan7", "reason": "truncated"}]
    assert entry["default_model"] == "cold_diffusion_t1"
    assert record["failed"] == [{"model": "x", "set": "all"}]
    assert record["made"]["models"]["good_t1"]["method"] == "cold_diffusion"
    assert entry["rows"][0]["model"] == "good_t1"
    for row in entry["rows"]:
        assert list(row["points"]) == ["sensitive", "balanced", "specific", "bounded"]
        assert row["points"]["balanced"]["target"] == 0.01
        assert row["points"]["bounded"]["target"] is None


def test_pooled_figures_are_those_of_scikit_learn(rows):
    truth = np.stack([truth_of(i) for i in range(8)]).ravel()
    scores = np.stack([map_of(1, i, truth_of(i), 3.0) for i in range(8)]).ravel()
    figures = rows["good_t1"]["figures"]
    assert figures["pooled_ap"]["value"] == pytest.approx(average_precision_score(truth, scores), abs=5e-3)
    assert figures["pooled_auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)
    assert figures["prevalence"]["value"] == pytest.approx(truth.mean())


def test_figures_at_a_point_are_means_over_its_scans(measurements, rows):
    cases, figures = cases_of(measurements[3]), rows["ddpm_t1"]["points"]["balanced"]["figures"]
    at = [case["points"]["balanced"] for case in cases]
    errors = [p["marked_ml"] - case["volume_ml"] for p, case in zip(at, cases, strict=True)]
    assert figures["volume_error_ml"]["value"] == pytest.approx(np.mean(np.abs(errors)))
    assert figures["volume_bias_ml"]["value"] == pytest.approx(np.mean(errors))
    assert figures["dice"]["value"] == pytest.approx(np.mean([p["dice"] for p in at]))
    assert figures["recall"]["value"] == pytest.approx(sum(p["detected"] for p in at) / sum(p["lesions"] for p in at))
    sums = sum((RodeoSums.from_json(p["rodeo"]) for p in at), RodeoSums()).scores()
    assert figures["rodeo"]["value"] == pytest.approx(sums["total"])
    assert figures["rodeo_shape"]["value"] == pytest.approx(sums["shape"])
    healthy = [scan["points"]["balanced"] for scan in measurements[3].record["protocols"][NAME]["healthy"]]
    assert figures["healthy_false_ml"]["value"] == pytest.approx(np.mean([p["false_ml"] for p in healthy]))
    for figure in figures.values():
        low, high = figure["interval"]
        assert low <= figure["value"] <= high


def test_a_volume_error_keeps_its_sign_in_the_bias_only():
    """Worked example: 3 ml too much and 1 ml too little."""
    small = made("m", "ddpm", 2.0, cases=2)
    for case, marked in zip(cases_of(small), (8.0, 4.0), strict=True):
        case["volume_ml"], case["points"]["balanced"]["marked_ml"] = 5.0, marked
    figures = set_rows([small], "t1", resamples=5)[0]["points"]["balanced"]["figures"]
    assert figures["volume_error_ml"] == {"value": 2.0, "interval": None}
    assert figures["volume_bias_ml"]["value"] == 1.0


def test_differences_are_paired_and_their_p_values_are_those_of_scipy(measurements, rows):
    entry = rows["good_t1"]["differences"]
    assert {key: entry[key]["reference"] for key in entry} == {
        "intensity": "intensity_t1",
        "atlas": "atlas_zscore_t1",
        "ddpm": "ddpm_t1",
        "best_baseline": "atlas_zscore_t1",
    }
    mine, other = (average_precisions(measurements[i].counts[NAME]) for i in (0, 3))
    expected = stats.permutation_test(
        (mine, other), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert entry["ddpm"]["mean_case_ap"]["p_value"] == pytest.approx(expected.pvalue)
    assert entry["ddpm"]["mean_case_ap"]["value"] == pytest.approx(mine.mean() - other.mean())
    assert entry["ddpm"]["pooled_ap"]["p_value"] is None
    gap = rows["good_t1"]["figures"]["pooled_ap"]["value"] - rows["ddpm_t1"]["figures"]["pooled_ap"]["value"]
    assert entry["ddpm"]["pooled_ap"]["value"] == pytest.approx(gap)
    assert 0 < entry["intensity"]["scan_auroc"]["p_value"] < 0.1
    assert "ddpm" not in rows["ddpm_t1"]["differences"]
    assert "best_baseline" not in rows["atlas_zscore_t1"]["differences"]


def test_a_verdict_is_yes_no_or_unclear_by_the_interval_of_the_difference(rows):
    told = {model: (row["verdict"]["beats_intensity"], row["verdict"]["beats_atlas"]) for model, row in rows.items()}
    assert told["good_t1"] == ("yes", "yes")
    assert told["ddpm_t1"] == ("yes", "unclear")
    assert told["intensity_t1"] == (None, "no")
    assert told["atlas_zscore_t1"] == ("yes", None)
    assert "NOT above atlas_zscore_t1" in rows["intensity_t1"]["verdict"]["sentence"]
    assert "not shown to be above atlas_zscore_t1 (difference +0.0" in rows["ddpm_t1"]["verdict"]["sentence"]


def test_with_few_patients_nothing_is_decided_and_nothing_has_an_interval():
    rows = {row["model"]: row for row in set_rows(four_models(cases=4, healthy=0), "t1", resamples=20)}
    verdict = rows["good_t1"]["verdict"]
    assert (verdict["beats_intensity"], verdict["beats_atlas"]) == ("unclear", "unclear")
    assert "undecided beside intensity_t1 (difference +0." in verdict["sentence"]
    assert "4 patients" in verdict["sentence"]
    assert all(figure["interval"] is None for figure in rows["good_t1"]["figures"].values())
    assert "scan_auroc" not in rows["good_t1"]["figures"]
    alone = set_rows([made("a", "ddpm", 2.0, cases=1), made("b", "intensity", 1.0, cases=1)], "t1", resamples=5)
    assert alone[0]["differences"]["intensity"]["mean_case_ap"]["p_value"] is None


def test_a_row_says_whether_the_healthy_scans_score_like_those_of_the_calibration():
    def drift(measurement):
        return set_rows([measurement], "t1", resamples=20)[0]["drift"]

    known = {"id": None, "kind": "own", "scans": 19, "warnings": []}
    one = made("m", "ddpm", 2.0, calibration=known, healthy=8)
    (protocol,) = one.record["protocols"].values()
    for scan in protocol["healthy"]:
        scan["p_value"] = 0.05  # above all 19
    found = drift(one)
    assert (found["distance"], found["scans"], found["calibration_scans"], found["drifted"]) == (1.0, 8, 19, True)
    assert "higher on the whole" in found["sentence"]
    protocol["healthy"][0]["p_value"] = None
    assert drift(one) is None
    protocol["healthy"][0]["p_value"] = 0.05
    protocol["leave_one_out"] = True
    assert drift(one) is None
    assert drift(made("m", "ddpm", 2.0, calibration={**known, "kind": "set"})) is None
    assert drift(made("m", "ddpm", 2.0, calibration=known, healthy=0)) is None


@pytest.mark.parametrize(("strength", "reference"), [(3.5, "intensity_any"), (0.2, "intensity_t1")])
def test_of_two_baselines_of_a_kind_the_stronger_one_is_the_reference(strength, reference):
    measurements = four_models()
    measurements.insert(0, made("intensity_any", "intensity", strength, modality="any", seed=9))
    rows = {row["model"]: row for row in set_rows(measurements, "t1", resamples=20)}
    found = rows["good_t1"]["differences"]
    assert found["intensity"]["reference"] == reference
    values = {name: rows[name]["figures"]["pooled_ap"]["value"] for name in ("intensity_any", "intensity_t1")}
    assert values[reference] == max(values.values())
    assert rows["intensity_any"]["verdict"]["beats_intensity"] is None


def test_a_model_calibrated_on_the_set_is_compared_with_references_read_the_same_way():
    ddpm = made("ddpm_t1", "ddpm", 1.0)
    other = made("ddpm_t1", "ddpm", 2.0, calibration={"kind": "set", "id": None, "scans": 6})
    name = "signed/standard/set"
    ddpm.record["protocols"][name] = other.record["protocols"][name]
    ddpm.counts[name], ddpm.healthy_counts[name] = other.counts[name], other.healthy_counts[name]
    mine = made("mine", "cold_diffusion", 2.0, calibration={"kind": "set", "id": None, "scans": 6})
    rows = {(r["model"], r["protocol"]): r for r in set_rows([ddpm, mine], "t1", resamples=10)}
    assert rows["mine", name]["differences"]["ddpm"]["pooled_ap"]["value"] == 0
    assert rows["ddpm_t1", name]["calibration"] == {"id": None, "kind": "set", "scans": 6}


def test_models_measured_on_other_cases_are_not_put_beside_each_other(measurements):
    other = made("other", "ddpm", 1.0, first_case=3)
    with pytest.raises(EvaluationFailed, match="same cases"):
        set_rows([measurements[0], other], "t1", resamples=10)


def test_the_healthy_quantile_is_the_set_s_or_else_the_calibration_s(measurements, rows):
    healthy = np.concatenate([map_of(1, 500 + i, np.zeros(SHAPE, bool), 0.0).ravel() for i in range(6)])
    found = rows["good_t1"]["thresholds"]["healthy_quantile"]
    assert found["source"] == "set"
    assert (healthy >= found["threshold"]).mean() <= 0.005
    assert found["threshold"] == pytest.approx(np.quantile(healthy, 0.995), rel=0.02)
    without = Measurement(measurements[0].record, measurements[0].counts)
    found = set_rows([without], "t1", resamples=5)[0]["thresholds"]["healthy_quantile"]
    tails = measurements[0].record["protocols"][NAME]["froc_thresholds"]
    assert (found["source"], found["threshold"]) == ("calibration", tails[TAIL_SHARES.index(0.005)])


def test_a_label_tuned_threshold_comes_from_other_patients(measurements, rows):
    crossed = rows["good_t1"]["thresholds"]["label_tuned"]
    assert crossed["tuned_on"] == "other half of the patients"
    assert len(crossed["thresholds"]) == 2
    tuning = made("good_t1", "cold_diffusion", 3.0, seed=1, first_case=50)
    row = set_rows(measurements[:1], "t1", tuning=[tuning], resamples=5)[0]
    tuned = row["thresholds"]["label_tuned"]
    assert (tuned["tuned_on"], len(tuned["thresholds"])) == ("tuning split", 1)
    assert tuned["note"] == "for comparison with papers only"
    tried = [_mean_dice(_maps(50), threshold) for threshold in np.linspace(1, 5, 81)]
    assert _mean_dice(_maps(50), tuned["thresholds"][0]) >= max(tried) - 0.01


def _maps(first):
    return [(map_of(1, i, truth_of(i), 3.0), truth_of(i)) for i in range(first, first + 8)]


def _mean_dice(maps, *thresholds):
    """Dice over cases, each at its own threshold or all at one."""
    at = np.broadcast_to(thresholds, len(maps))
    return np.mean([2 * (t & (m >= x)).sum() / ((m >= x).sum() + t.sum()) for (m, t), x in zip(maps, at, strict=True)])


def test_each_case_is_read_at_its_own_threshold(measurements):
    changed = Measurement(json.loads(json.dumps(measurements[0].record)), measurements[0].counts)
    for number, case in enumerate(cases_of(changed)):
        case["points"]["balanced"]["threshold"] = 2.0 + 0.25 * number
    row = set_rows([changed], "t1", resamples=5)[0]
    expected = _mean_dice(_maps(0), *(2.0 + 0.25 * number for number in range(8)))
    assert row["thresholds"]["healthy_point"]["dice"]["value"] == pytest.approx(expected)
    assert row["points"]["balanced"]["threshold"] == pytest.approx(2.875)


def test_curves_examples_and_single_values_come_with_the_set(record, measurements):
    entry = record["sets"][0]
    curve = entry["curves"]["good_t1"]
    assert len(curve["froc"]) == len(curve["froc_healthy"]) == len(TAIL_SHARES)
    assert len(curve["pr"]) <= 200
    cases = cases_of(measurements[0])
    recall = sum(case["froc"]["detected"][-1] for case in cases)
    recall /= sum(case["points"]["balanced"]["lesions"] for case in cases)
    false = np.mean([case["froc"]["false_positives"][-1] for case in cases])
    assert curve["froc"][0] == [false, recall]  # the strictest threshold, recorded last
    assert curve["froc"][-1][1] == 1
    mine = [example for example in entry["examples"] if example["model"] == "good_t1"]
    dices = sorted(case["points"]["balanced"]["dice"] for case in cases)
    assert [e["dice"] for e in mine if e["kind"] == "worst"] == dices[:2]
    assert [e["dice"] for e in mine if e["kind"] == "best"] == dices[::-1][:2]
    single = entry["distributions"]["good_t1"]
    assert len(single["healthy_false_ml"]["balanced"]) == 6
    assert len(single["scan_scores"]["cases"]) == 8


def test_a_record_of_one_operating_point_still_gives_a_table():
    """Measurements of earlier versions: no points, no FROC counts, no healthy histograms."""
    old = made("old_t1", "ddpm", 2.0)
    protocol = old.record["protocols"][NAME]
    for scan in (*protocol["cases"], *protocol["healthy"]):
        scan |= scan.pop("points")["balanced"]
        for key in ("threshold", "marked_ml", "rodeo", "froc", "froc_false_positives", "attributes"):
            scan.pop(key, None)
    protocol["threshold"] = 2.5
    del protocol["froc_thresholds"]
    entry = evaluation_record([Measurement(old.record, old.counts)], resamples=20)["sets"][0]
    row = entry["rows"][0]
    assert list(row["points"]) == ["balanced"]
    assert row["points"]["balanced"]["threshold"] == 2.5
    assert "rodeo" not in row["points"]["balanced"]["figures"]
    assert row["thresholds"]["healthy_quantile"] is None
    assert row["thresholds"]["healthy_point"]["dice"]["value"] > 0
    assert set(entry["curves"]["old_t1"]) == {"pr"}


def test_splits_of_a_set_are_sets_of_their_own(measurements):
    other = four_models(split="val", first_case=20)[:1]
    entries = evaluation_record([*measurements[:1], *other], resamples=5)["sets"]
    assert [(entry["name"], entry["split"]) for entry in entries] == [("made_t1", "test"), ("made_t1", "val")]
