"""Measuring: nobody is judged by their own statistics, every scan is counted once, and nothing is lost by a kill."""

import json
import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.calibration.calibrated_map import analysed_mask, scan_score
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.case_histograms import BINS
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.pipelines.evaluation import analyses
from monailabel_app.pipelines.evaluation.measure import Measurement, analyse_tasks, measure, measure_tasks, plan_of
from monailabel_app.pipelines.evaluation.own_folder import release
from monailabel_app.pipelines.evaluation.reading import Reader, marked
from monailabel_app.pipelines.evaluation.store import AnalysisStore, keep_in, purge
from monailabel_app.pipelines.evaluation.tasks import MeasuredModel, Task
from monailabel_app.pipelines.fit import rewrite_card
from monailabel_app.pipelines.healthy_reference import HealthyReference
from monailabel_app.pipelines.predict import AnomalyModel, PredictSettings, analyse, load_model
from monailabel_app.pipelines.shared_scans import Shared
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.weights.model_folder import result_hash, weights_hash
from tests.monailabel_app.pipelines.evaluation.case_factory import LESIONED, own_set, prepared_case

NAME = "signed/standard/own"


@pytest.fixture(scope="module")
def case_set(make_model):
    return own_set(make_model("ddpm"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(make_model):
    return load_model(make_model("ddpm").folder)


@pytest.fixture(scope="module")
def measured(model, case_set, cache):
    return measure(model, case_set, cache=cache, scores=("signed", "l1"))


@pytest.fixture(scope="module")
def reference(model, case_set):
    scans = [analyse(case.prepared, model, PredictSettings()) for case in case_set.healthy]
    return HealthyReference(model, scans, patients=[case.patient for case in case_set.healthy])


def test_a_model_meets_its_calibration_scans_without_their_own_statistics(model, case_set, measured, reference):
    assert all(entry["leave_one_out"] for entry in measured.record["protocols"].values())
    assert all(name.endswith("/own") for name in measured.record["protocols"])
    lesioned = analyse(case_set.cases[2].prepared, model, PredictSettings())
    left_out = scan_score(reference.map_of(lesioned, "signed", "standard", without=2))
    included = scan_score(reference.map_of(lesioned, "signed", "standard", without=None))
    told = measured.record["protocols"][NAME]["cases"][2]["scan_score"]
    assert told == pytest.approx(left_out, rel=1e-5)
    assert told != pytest.approx(included, rel=1e-3)
    healthy = scan_score(reference.map_of(reference._scans[3], "signed", "standard", without=3))
    assert measured.record["protocols"][NAME]["healthy"][3]["scan_score"] == pytest.approx(healthy, rel=1e-5)


@pytest.mark.parametrize("point", ["sensitive", "balanced", "specific", "bounded"])
def test_the_thresholds_of_all_scans_are_those_of_the_calibration(model, reference, point):
    own = model.calibration.score("signed").points["standard"][point].threshold
    assert reference.threshold("signed", "standard", point=point) == pytest.approx(own, rel=1e-2)


def test_a_threshold_leaves_out_the_person_too(model, case_set, reference):
    threshold = reference.threshold("signed", "standard", without=3)
    maps = reference.maps("signed", "standard")
    rates = [
        (values[analysed_mask(case.prepared.brain_mask, model.calibration.erosion_mm)] > threshold).mean()
        for index, (values, case) in enumerate(zip(maps, case_set.healthy, strict=True))
        if index != 3
    ]
    assert np.mean(rates) == pytest.approx(0.01, abs=1e-3)


def test_all_healthy_scans_of_a_person_are_left_out_together(model, case_set, cache):
    twice = [replace(case, patient="one") if index < 2 else case for index, case in enumerate(case_set.healthy)]
    cases = replace(case_set, healthy=twice, cases=[replace(case_set.cases[0], patient="one")], key="t" * 64)
    told = measure(model, cases, cache=cache).record["protocols"][NAME]["cases"][0]
    scans = [analyse(case.prepared, model, PredictSettings()) for case in twice]
    both = HealthyReference(model, scans, patients=[case.patient for case in twice])
    lesioned = analyse(case_set.cases[0].prepared, model, PredictSettings())
    expected = scan_score(both.map_of(lesioned, "signed", "standard", without=(0, 1)))
    assert told["scan_score"] == pytest.approx(expected, rel=1e-5)


def test_a_record_holds_every_point_every_tail_and_what_a_scan_is(measured, model, case_set):
    protocol = measured.record["protocols"][NAME]
    points = model.calibration.score("signed").points["standard"]
    assert set(protocol["points"]) == set(points)
    assert len(protocol["froc_thresholds"]) == len(TAIL_SHARES)
    case, healthy = protocol["cases"][0], protocol["healthy"][4]
    assert set(case["points"]) == set(healthy["points"]) == set(points)
    for point in case["points"].values():
        assert point["rodeo"]["matched"] + point["rodeo"]["missed"] == point["lesions"] == 1
        assert point["false_ml"] <= point["marked_ml"]
    assert case["volume_ml"] == pytest.approx(case_set.cases[0].gt_mask.sum() * 0.008)
    assert case["native_ml"] > 0
    assert 0 < case["p_value"] <= 1
    assert healthy["attributes"] == {"age": 34}
    assert healthy["points"]["balanced"]["false_ml"] == healthy["points"]["balanced"]["marked_ml"]
    assert measured.counts[NAME].shape == (LESIONED, 2, BINS)
    assert measured.healthy_counts[NAME].shape == (len(case_set.healthy), BINS)
    assert measured.counts[NAME][0, 0].sum() == case_set.cases[0].gt_mask.sum()
    assert measured.record["set"]["key"] == case_set.key


def test_the_froc_counts_lesions_as_the_operating_points_do(model, case_set, measured, cache):
    from monailabel_app.pipelines.evaluation.measure import plan_of

    task = Task(MeasuredModel.of(model, ("signed", "l1")), case_set)
    reader = Reader(plan_of(task, cache))
    protocol = next(p for p in reader.protocols(("signed",), ("standard",)))
    told = measured.record["protocols"][NAME]["cases"][1]
    case = case_set.cases[1]
    scan = analyses.read_analysis(reader.model, case, cache)
    values = delineated(reader.calibrated(case, scan, protocol), scan.prepared.spacing_mm)
    thresholds = reader.reference.thresholds("signed", "standard").tails((1,))
    for index, threshold in enumerate(thresholds):
        found = count_lesions(marked(case, scan, values, threshold) & case.counted, case.gt_mask)
        assert told["froc"]["detected"][index] == found.detected
        assert told["froc"]["false_positives"][index] == found.false_positives


def test_a_model_calibrated_elsewhere_is_read_with_both_calibrations(model, case_set, cache):
    strangers = [prepared_case(300 + index, lesion=False) for index in range(5)]
    others = replace(case_set, healthy=strangers, cases=case_set.cases[:1], key="o" * 64)
    record = measure(model, others, cache=cache).record
    own, site = (record["protocols"][f"signed/standard/{name}"] for name in ("own", "set"))
    assert not own["leave_one_out"]
    assert own["calibration"]["scans"] == 10
    assert site["calibration"] == {"id": None, "kind": "set", "scans": 5}
    point = model.calibration.score("signed").points["standard"]["balanced"]
    assert own["cases"][0]["points"]["balanced"]["threshold"] == point.threshold
    assert site["cases"][0]["points"]["balanced"]["threshold"] != point.threshold
    assert own["froc_thresholds"] == pytest.approx(model.calibration.score("signed").tails["standard"])


def test_a_labelled_scan_without_a_lesion_counts_as_a_negative(model, case_set, cache):
    nothing = prepared_case(200, lesion=False)
    nothing = replace(nothing, details={"native_lesions": 0, "native_ml": 0.0, "lost_lesions": 0})
    cases = replace(case_set, healthy=[], cases=[case_set.cases[0], nothing], key="n" * 64)
    found = measure(model, cases, cache=cache)
    protocol = found.record["protocols"][NAME]
    assert [case["patient"] for case in protocol["cases"]] == ["person100"]
    assert [scan["patient"] for scan in protocol["healthy"]] == ["person200"]
    assert found.counts[NAME].shape[0] == found.healthy_counts[NAME].shape[0] == 1


def test_healthy_scans_alone_can_be_measured(model, case_set, cache):
    found = measure(model, replace(case_set, cases=[], key="h" * 64), cache=cache)
    assert not found.counts
    assert len(found.record["protocols"][NAME]["healthy"]) == len(case_set.healthy)


def test_a_measurement_read_back_is_the_same_and_one_of_another_version_is_not_read(measured, tmp_path):
    measured.save(tmp_path / "m")
    again = Measurement.load(tmp_path / "m")
    assert again.record == json.loads(json.dumps(measured.record))
    for name, counts in measured.counts.items():
        np.testing.assert_array_equal(again.counts[name], counts)
        np.testing.assert_array_equal(again.healthy_counts[name], measured.healthy_counts[name])
    assert Measurement.load(tmp_path / "other") is None
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole[: len(whole) // 2])
    assert Measurement.load(tmp_path / "m") is None
    (tmp_path / "m.safetensors").write_bytes(whole)
    (tmp_path / "m.json").write_text(json.dumps({**again.record, "version": -1}))
    assert Measurement.load(tmp_path / "m") is None
    (tmp_path / "m.json").write_text("{")
    assert Measurement.load(tmp_path / "m") is None


def test_a_killed_evaluation_goes_on_at_the_scan_where_it_stopped(model, case_set, tmp_path, monkeypatch):
    seen, run = [], analyses.analyse

    def counted(prepared, *args, **options):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(prepared)
        return run(prepared, *args, **options)

    task = Task(MeasuredModel.of(model), case_set)
    monkeypatch.setattr(analyses, "analyse", counted)
    with pytest.raises(KeyboardInterrupt):
        analyse_tasks([task], tmp_path)
    seen.clear()
    monkeypatch.setattr(analyses, "analyse", lambda *args, **options: (seen.append(args[0]), run(*args, **options))[1])
    assert analyse_tasks([task], tmp_path) == [{}]
    assert len(seen) == len(task.scans) - 5
    analyse_tasks([task], tmp_path)
    assert len(seen) == len(task.scans) - 5


def test_another_score_of_the_same_analysis_is_added_to_it(model, case_set, tmp_path):
    few = replace(case_set, healthy=[], cases=case_set.cases[:1])
    for scores in (("signed",), ("l1",)):
        analyse_tasks([Task(MeasuredModel.of(model, scores), few)], tmp_path)
    network = weights_hash(model.folder)
    assert AnalysisStore(tmp_path).holds(network, few.cases[0].key, ("signed", "l1"))


def test_a_site_calibration_in_use_is_another_measurement_of_the_same_analyses(model, monkeypatch):
    own = MeasuredModel.of(model)
    assert own.about["calibration"]["kind"] == "own"

    def with_site(self, wanted):
        made = copy(self)
        made.calibration_id = {"kind": wanted, "id": "2026-01-01-abcdef", "hash": "h"}
        return made

    monkeypatch.setattr(AnomalyModel, "with_calibration", with_site)
    site = MeasuredModel.of(model)
    assert site.about["calibration"]["id"] == "2026-01-01-abcdef"
    assert site.about["calibration"]["kind"] == "site"
    assert site.model_hash != own.model_hash
    assert site.parts == own.parts
    assert MeasuredModel.of(model, calibration="shipped").model_hash == own.model_hash


def test_a_stored_analysis_gives_the_maps_that_were_made(model, case_set, tmp_path):
    case = case_set.cases[0]
    scan = analyse(case.prepared, model, PredictSettings())
    store, network = AnalysisStore(tmp_path), weights_hash(model.folder)
    store.write(network, case.key, scan, ("signed",), analyses.Costs(1.0, 0.5, 300.0))
    again = store.read(network, case.key, case.prepared)
    np.testing.assert_allclose(again.raw("signed"), scan.raw("signed"), atol=1e-6)
    assert store.costs(network, case.key) == analyses.Costs(1.0, 0.5, 300.0)
    store.path(network, case.key).write_bytes(b"damaged")
    assert store.read(network, case.key, case.prepared) is None
    assert not store.holds(network, case.key, ("signed",))


def test_a_new_calibration_does_not_make_another_network(make_model, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(make_model("ddpm").folder, folder)
    network, result = weights_hash(folder), result_hash(folder)
    rewrite_card(folder, "# another card\n")
    assert (weights_hash(folder), result_hash(folder)) == (network, result)
    calibration = folder / "calibration.json"
    calibration.write_text(calibration.read_text() + "\n")
    rewrite_card(folder, "# sealed again\n")
    assert weights_hash(folder) == network
    assert result_hash(folder) != result
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "note: changed\n")
    rewrite_card(folder, "# sealed once more\n")
    assert weights_hash(folder) != network


def test_a_scan_that_cannot_be_analysed_is_named_and_the_others_go_on(model, case_set, tmp_path, monkeypatch):
    run, bad = analyses.analyse, case_set.cases[1].prepared

    def failing(prepared, *args, **options):
        if prepared is bad:
            raise MemoryError
        return run(prepared, *args, **options)

    monkeypatch.setattr(analyses, "analyse", failing)
    failed = analyse_tasks([Task(MeasuredModel.of(model), case_set)], tmp_path)
    assert list(failed[0]) == [case_set.cases[1].id]
    assert "fewer workers" in failed[0][case_set.cases[1].id]
    with pytest.raises(EvaluationFailed, match="every scan"):
        measure(model, case_set, cache=tmp_path)


@pytest.mark.slow  # six processes are started
def test_processes_give_what_one_gives(model, case_set, measured, tmp_path):
    together = measure(model, case_set, cache=tmp_path, scores=("signed", "l1"), workers=2)
    assert together.record["protocols"] == measured.record["protocols"]
    for name, counts in measured.counts.items():
        np.testing.assert_array_equal(together.counts[name], counts)


def test_what_is_kept_between_steps_is_made_once_and_the_cache_can_be_emptied(tmp_path):
    made = []
    keep = keep_in(tmp_path / "healthy" / "set")
    for _ in range(2):
        values = keep("map", lambda: (made.append(1), np.arange(3.0))[1])
        np.testing.assert_array_equal(values, [0, 1, 2])
    assert made == [1]
    (tmp_path / "other").mkdir()
    assert purge(tmp_path) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_evaluation_that_ends_does_not_take_the_maps_of_another_on_the_same_cache(model, case_set, measured, cache):
    task = Task(MeasuredModel.of(model), case_set)
    there = set((cache / "healthy").iterdir())
    other = plan_of(task, cache)
    keep_in(other.keep)("map", lambda: np.arange(3.0))
    assert len(list(measure_tasks([task], cache))) == 1
    assert (other.keep / "map.npy").is_file()
    release(other.keep)
    assert set((cache / "healthy").iterdir()) == there


def test_a_set_that_shares_scans_with_the_calibration_is_told_so(model, case_set, measured, cache, monkeypatch):
    monkeypatch.setattr(HealthyReference, "same_scans", lambda self, score: False)
    monkeypatch.setattr(HealthyReference, "shared", lambda self, score: Shared(4))
    cases = replace(case_set, cases=case_set.cases[:1], key="s" * 64)
    protocols = measure(model, cases, cache=cache).record["protocols"]
    said = protocols[NAME]["calibration"]["warnings"][-1]
    assert said.startswith("about 4 of the 10 healthy scans of this set are among those that the model was calibrated")
    assert "warnings" not in protocols["signed/standard/set"]["calibration"]


def test_some_of_the_calibrations_own_scans_are_counted(model, reference):
    assert HealthyReference(model, reference._scans[:7]).shared("signed").scans == pytest.approx(7, abs=2)
