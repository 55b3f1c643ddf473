"""The comparison: the same cases for all, nobody judged by their own statistics, nothing measured twice or lost."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.calibration.calibrated_map import analysed_mask
from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.evaluation import run as comparison
from monailabel_app.pipelines.evaluation.cases import (
    CaseSet,
    PreparedCase,
    load_case,
    on_model_grid,
    save_case,
    set_key,
)
from monailabel_app.pipelines.evaluation.figures import set_rows
from monailabel_app.pipelines.evaluation.measure import Measurement, measure
from monailabel_app.pipelines.evaluation.sets import SETS, SetBuilder, sets_for
from monailabel_app.pipelines.fit import rewrite_card
from monailabel_app.pipelines.healthy_reference import HealthyReference, rate_threshold
from monailabel_app.pipelines.predict import PredictSettings, analyse, load_model
from monailabel_app.preprocessing.pipeline import Preprocessor
from monailabel_app.weights.model_folder import result_hash
from tests.monailabel_app.synthetic import person, scan, template

LESIONED = 6


def _prepared(seed: int, index: int | None, lesion: bool) -> PreparedCase:
    volume, brain, truth = scan(person(seed), lesion_mm=(-12, 12, 6) if lesion else None, contrast=0.7)
    made = Preprocessor(template()).prepare(volume, brain=brain)
    name = f"person{seed}"
    return PreparedCase(name, name, made, on_model_grid(truth, made), made.brain_mask, index, {}, 0.5)


@pytest.fixture(scope="module")
def case_set(make_model):
    """The tiny models' own calibration scans, and lesions in some of the same people."""
    prepared = [scan.prepared for scan in make_model("ddpm").healthy]
    healthy = [
        PreparedCase(f"person{100 + i}", f"person{100 + i}", p, np.zeros_like(p.brain_mask), p.brain_mask, i)
        for i, p in enumerate(prepared)
    ]
    cases = [_prepared(100 + i, i, True) for i in range(LESIONED)]
    return CaseSet("ixi_implanted", "synthetic", "t1", "k" * 64, healthy, cases)


@pytest.fixture(scope="module")
def measured(make_model, case_set):
    return measure(load_model(make_model("ddpm").folder), case_set, scores=("signed", "l1"))


def test_a_model_meets_its_calibration_scans_without_their_own_statistics(make_model, case_set, measured):
    model = load_model(make_model("ddpm").folder)
    assert all(entry["leave_one_out"] for entry in measured.record["protocols"].values())
    assert all(name.endswith("/own") for name in measured.record["protocols"])
    settings = PredictSettings()
    reference = HealthyReference(model, [analyse(case.prepared, model, settings) for case in case_set.healthy])
    lesioned = analyse(case_set.cases[2].prepared, model, settings)
    left_out = reference.map_of(lesioned, "signed", "standard", without=2)
    included = reference.map_of(lesioned, "signed", "standard", without=None)
    told = measured.record["protocols"]["signed/standard/own"]["cases"][2]["scan_score"]
    count = round(2000 / 8)
    assert told == pytest.approx(np.sort(left_out.ravel())[-count:].mean(), rel=1e-5)
    assert told != pytest.approx(np.sort(included.ravel())[-count:].mean(), rel=1e-3)


def test_the_threshold_leaves_out_the_person_too(make_model, case_set):
    model = load_model(make_model("ddpm").folder)
    reference = HealthyReference(model, [analyse(c.prepared, model, PredictSettings()) for c in case_set.healthy])
    everyone = reference.threshold("signed", "standard")
    own = model.calibration.score("signed").points["standard"]["balanced"].threshold
    assert everyone == pytest.approx(own, rel=1e-2)
    maps = reference.maps("signed", "standard")
    threshold = reference.threshold("signed", "standard", without=3)
    rates = [
        (values[analysed_mask(case.prepared.brain_mask, 2.0)] > threshold).mean()
        for index, (values, case) in enumerate(zip(maps, case_set.healthy, strict=True))
        if index != 3
    ]
    assert np.mean(rates) == pytest.approx(0.01, abs=1e-3)


def test_a_model_calibrated_elsewhere_is_read_with_both_calibrations(make_model, case_set):
    strangers = [_prepared(300 + i, i, False) for i in range(5)]
    others = replace(case_set, healthy=strangers, cases=[replace(case_set.cases[0], scan=None)])
    record = measure(load_model(make_model("ddpm").folder), others).record
    own, site = (record["protocols"][f"signed/standard/{name}"] for name in ("own", "set"))
    assert not own["leave_one_out"]
    model = load_model(make_model("ddpm").folder)
    assert own["threshold"] == model.calibration.score("signed").points["standard"]["balanced"].threshold
    assert site["threshold"] != own["threshold"]


def test_the_figures_of_a_measurement_read_back_are_the_same(measured, tmp_path):
    measured.save(tmp_path / "m")
    again = Measurement.load(tmp_path / "m")
    assert set_rows([again], "t1", resamples=50) == set_rows([measured], "t1", resamples=50)
    assert Measurement.load(tmp_path / "other") is None


def test_rows_carry_intervals_and_paired_differences(measured):
    rows = set_rows([measured], "t1", resamples=100)
    assert len(rows) == len(measured.record["protocols"])
    best = rows[0]["figures"]
    assert best["pooled_ap"]["value"] == max(row["figures"]["pooled_ap"]["value"] for row in rows)
    for key in ("pooled_ap", "dice", "scan_auroc", "healthy_false_ml"):
        low, high = best[key]["interval"]
        assert low <= best[key]["value"] <= high
    by_protocol = {row["protocol"]: row for row in rows}
    reference, other = by_protocol["signed/standard/own"], by_protocol["l1/standard/own"]
    assert "ddpm" not in reference["differences"]
    gap = other["figures"]["pooled_ap"]["value"] - reference["figures"]["pooled_ap"]["value"]
    assert other["differences"]["ddpm"]["pooled_ap"]["value"] == pytest.approx(gap)


def test_models_measured_on_other_cases_are_not_put_beside_each_other(measured):
    other = Measurement(json.loads(json.dumps(measured.record)), measured.counts)
    other.record["set"]["key"] = "another"
    with pytest.raises(EvaluationFailed, match="same cases"):
        set_rows([measured, other], "t1", resamples=10)


def test_a_comparison_is_measured_once_and_goes_on_after_a_failing_model(
    make_model, case_set, tmp_path, monkeypatch
):
    folder, times = make_model("ddpm").folder, []

    def counted(model, cases, **options):
        times.append(model.id)
        return measure(model, cases, **options)

    def build(self, name, settings, levels):
        if name != case_set.name:
            raise EvaluationFailed("no such scans")
        return case_set

    monkeypatch.setattr(SetBuilder, "build", build)
    monkeypatch.setattr(comparison, "measure", counted)
    monkeypatch.setattr(comparison, "RESAMPLES", 20)
    (tmp_path / "broken").mkdir()
    folders = [tmp_path / "broken", folder]
    first = comparison.compare(folders, tmp_path, tmp_path / "out", tmp_path / "cache")
    again = comparison.compare(folders, tmp_path, tmp_path / "out", tmp_path / "cache")
    assert times == ["tiny"]
    assert first == again
    assert [(item["model"], item["set"]) for item in first["failed"]] == [("broken", "all"), ("tiny", "mslub_t1")]
    table = (tmp_path / "out" / "methods_table.md").read_text()
    assert "| tiny | signed |" in table
    assert "no such scans" in table
    header, *lines = (tmp_path / "out" / "methods_table.csv").read_text().splitlines()
    assert "pooled_ap_low" in header
    assert len(lines) == 1
    comparison.compare([folder], tmp_path, tmp_path / "out", tmp_path / "cache", all_scores=True)
    assert times == ["tiny", "tiny"]
    table = (tmp_path / "out" / "methods_table.csv").read_text().splitlines()
    assert len(table) == 1 + len(load_model(folder).scores)
    assert json.loads((tmp_path / "out" / "methods_table.json").read_text())["sets"][0]["rows"]


def test_a_case_read_from_disk_is_the_one_that_was_written(case_set, tmp_path):
    case = case_set.cases[1]
    save_case(tmp_path / "case.safetensors", case)
    again = load_case(tmp_path / "case.safetensors")
    np.testing.assert_allclose(again.prepared.image, case.prepared.image, atol=3e-4)
    for name in ("gt_mask", "counted"):
        np.testing.assert_array_equal(getattr(again, name), getattr(case, name))
    np.testing.assert_array_equal(again.prepared.brain_mask, case.prepared.brain_mask)
    assert (again.id, again.patient, again.scan) == (case.id, case.patient, case.scan)
    (tmp_path / "case.safetensors").write_bytes(b"damaged")
    with pytest.raises(EvaluationFailed, match="remove the folder"):
        load_case(tmp_path / "case.safetensors")


def test_a_set_is_another_when_a_file_or_a_setting_changes(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"1")
    one = set_key([tmp_path / "a.nii"], {"seed": 1})
    assert one == set_key([tmp_path / "a.nii"], {"seed": 1})
    assert one != set_key([tmp_path / "a.nii"], {"seed": 2})
    (tmp_path / "a.nii").write_bytes(b"2")
    assert one != set_key([tmp_path / "a.nii"], {"seed": 1})


def test_a_new_card_does_not_make_another_model(make_model, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(make_model("ddpm").folder, folder)
    before = result_hash(folder)
    rewrite_card(folder, "# another card\n")
    assert result_hash(folder) == before
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "note: changed\n")
    rewrite_card(folder, "# sealed again\n")
    assert result_hash(folder) != before


def test_models_are_measured_on_their_own_sequence_and_any_on_all():
    assert [info.name for info in sets_for("t1")] == ["ixi_implanted", "mslub_t1"]
    assert "soop_flair" in [info.name for info in sets_for("FLAIR")]
    assert len(sets_for("any")) == len(SETS)


def test_every_scan_has_the_same_weight_in_a_threshold():
    small, large = np.sort(np.random.default_rng(0).random(100)), np.sort(10 + np.random.default_rng(1).random(10_000))
    threshold = rate_threshold([small, large], 0.25)
    assert (large > threshold).mean() == pytest.approx(0.5, abs=0.01)
