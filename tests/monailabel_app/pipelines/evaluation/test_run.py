"""The evaluation: both baselines always along, the same cases for all, nothing measured twice, no fault fatal."""

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.evaluation import analyses
from monailabel_app.pipelines.evaluation import run as evaluation
from monailabel_app.pipelines.evaluation.dataset_types import Dataset
from monailabel_app.pipelines.evaluation.measure import VERSION, Measurement
from monailabel_app.pipelines.evaluation.run import Options, Request, evaluate
from monailabel_app.pipelines.evaluation.sets import SetBuilder
from monailabel_app.pipelines.evaluation.tasks import Task
from tests.monailabel_app.pipelines.evaluation.case_factory import own_set, prepared_case

QUICKLY = Options(resamples=20)


@pytest.fixture(scope="module")
def weights(make_model, tmp_path_factory):
    """Folders by name, as the app has them: a model, and the two baselines."""
    base = tmp_path_factory.mktemp("weights")
    found = {}
    for method in ("ddpm", "intensity", "atlas_zscore"):
        source = make_model(method).folder
        found[f"{method}_t1"] = base / f"{method}_t1"
        shutil.copytree(source, found[f"{method}_t1"])
        shutil.copytree(source.parent / "template", base / "template", dirs_exist_ok=True)
    return found


@pytest.fixture(scope="module")
def case_set(make_model):
    return replace(own_set(make_model("ddpm")), name="files", title="Synthetic files")


@pytest.fixture
def dataset(tmp_path, case_set, monkeypatch):
    """A data set whose preparation is done."""
    monkeypatch.setattr(SetBuilder, "build", lambda self, dataset, settings, levels: case_set)
    return Dataset("files", "Synthetic files", "t1", "CC0", tmp_path, None, ())


@pytest.fixture
def measured(monkeypatch):
    """The ids of the models as they are measured."""
    made, real = [], evaluation.measure_tasks

    def counted(tasks, *args, **options):
        made.extend(task.model.id for task in tasks)
        return real(tasks, *args, **options)

    monkeypatch.setattr(evaluation, "measure_tasks", counted)
    return made


def _request(weights, dataset, *names, **more):
    return Request(tuple(weights.get(name, name) for name in names), weights, (dataset,), {}, **more)


def test_both_baselines_are_measured_along_and_everything_is_written(weights, dataset, measured, tmp_path):
    request = _request(weights, dataset, "ddpm_t1", explicit=("ddpm_t1",), command="main.py evaluate")
    record = evaluate(request, tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert sorted(measured) == ["atlas_zscore_t1", "ddpm_t1", "intensity_t1"]
    entry = record["sets"][0]
    assert {row["model"] for row in entry["rows"]} == set(measured)
    row = next(row for row in entry["rows"] if row["model"] == "ddpm_t1")
    assert {"intensity", "atlas"} <= set(row["differences"])
    assert row["points"]["bounded"]["target"] == pytest.approx(2.0)
    shown = [example for example in entry["examples"] if example["model"] == "ddpm_t1"]
    assert shown
    for example in shown:
        assert (tmp_path / "out" / example["picture"]).read_bytes().startswith(b"\x89PNG")
    assert all(e["picture"] is None for e in entry["examples"] if e["model"] != "ddpm_t1")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["sets"][0]["name"] == "files"
    assert "ddpm_t1" in (tmp_path / "out" / "evaluation.md").read_text()
    assert "ddpm_t1" in (tmp_path / "out" / "evaluation.html").read_text()
    lines = list(csv.DictReader((tmp_path / "out" / "scans.csv").open()))
    assert len(lines) == 3 * (len(entry["rows"][0]) and entry["cases"] + entry["healthy"])
    one = next(line for line in lines if line["model"] == "ddpm_t1" and line["healthy"] == "1")
    assert one["age"] == "30"
    assert float(one["false_ml_balanced"]) >= 0
    assert one["dice_balanced"] == ""


def test_what_was_measured_is_read_again_unless_it_is_asked_for_anew(weights, dataset, measured, tmp_path):
    request = _request(weights, dataset, "ddpm_t1")
    first = evaluate(request, tmp_path / "out", tmp_path / "cache", QUICKLY)
    count = len(measured)
    again = evaluate(request, tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert len(measured) == count == 3
    assert again["sets"] == first["sets"]
    every = evaluate(request, tmp_path / "out", tmp_path / "cache", replace(QUICKLY, all_scores=True))
    assert len(measured) > count
    assert len(every["sets"][0]["rows"]) > len(first["sets"][0]["rows"])
    count = len(measured)
    evaluate(request, tmp_path / "out", tmp_path / "cache", replace(QUICKLY, again=True))
    assert len(measured) == count + 3


@pytest.mark.parametrize("name", ["files", "lesions.v1", "../../outside", "a/b", "/etc"])
def test_a_measurement_is_taken_over_for_the_same_scans_only_whatever_their_set_is_called(case_set, tmp_path, name):
    run = evaluation._Run(Request((), {}, (), {}), tmp_path, tmp_path, QUICKLY, None)
    model = SimpleNamespace(id="ddpm_t1", model_hash="a" * 64, scores=("signed",), smoothings=("standard",))
    keys = ("1" * 64, "2" * 64, "2" * 63 + "3")
    tasks = [Task(model, replace(case_set, name=name, key=key)) for key in keys]
    for task in tasks[:2]:
        record = {"version": VERSION, "set": {"key": task.cases.key}, "protocols": {"signed/standard/own": {}}}
        Measurement(record, {"signed/standard/own": np.zeros((1, 2, 3), np.int32)}).save(run._path(task))
    found = list((tmp_path / "measured").rglob("*.json"))
    assert len(found) == len(list(tmp_path.rglob("*.json"))) == 2
    run._tasks = tasks
    run._keep_measured()
    assert {index: kept.record["set"]["key"] for index, kept in run._found.items()} == {0: keys[0], 1: keys[1]}


def test_a_model_that_cannot_be_loaded_is_reported_and_the_others_go_on(weights, dataset, measured, tmp_path):
    (tmp_path / "broken").mkdir()
    record = evaluate(
        _request(weights, dataset, tmp_path / "broken", "ddpm_t1"), tmp_path / "out", tmp_path / "cache", QUICKLY
    )
    assert [item["model"] for item in record["failed"]] == ["broken"]
    assert "broken" in (tmp_path / "out" / "evaluation.md").read_text()
    assert {row["model"] for row in record["sets"][0]["rows"]} == {"ddpm_t1", "intensity_t1", "atlas_zscore_t1"}


def test_a_model_that_fails_on_most_scans_is_left_out_itself(weights, dataset, measured, tmp_path, monkeypatch):
    run = analyses.analyse

    def failing(prepared, model, *args, **options):
        if model.id == "ddpm_t1":
            raise RuntimeError
        return run(prepared, model, *args, **options)

    monkeypatch.setattr(analyses, "analyse", failing)
    record = evaluate(_request(weights, dataset, "ddpm_t1"), tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert [(item["model"], item["set"]) for item in record["failed"]] == [("ddpm_t1", "files")]
    assert record["sets"][0]["skipped"] == []
    assert {row["model"] for row in record["sets"][0]["rows"]} == {"intensity_t1", "atlas_zscore_t1"}


def test_a_scan_that_one_model_cannot_analyse_is_left_out_for_all(
    weights, dataset, case_set, measured, tmp_path, monkeypatch
):
    run, bad = analyses.analyse, case_set.cases[1]

    def failing(prepared, model, *args, **options):
        if model.id == "ddpm_t1" and prepared is bad.prepared:
            raise MemoryError
        return run(prepared, model, *args, **options)

    # Measured with the scan before: these must not be mixed with measurements without it.
    evaluate(_request(weights, dataset, "intensity_t1"), tmp_path / "out", tmp_path / "cache", QUICKLY)
    monkeypatch.setattr(analyses, "analyse", failing)
    record = evaluate(_request(weights, dataset, "ddpm_t1"), tmp_path / "out", tmp_path / "cache", QUICKLY)
    entry = record["sets"][0]
    assert [item["id"] for item in entry["skipped"]] == [bad.id]
    assert {row["cases"] for row in entry["rows"]} == {len(case_set.cases) - 1}
    assert {row["model"] for row in entry["rows"]} == {"ddpm_t1", "intensity_t1", "atlas_zscore_t1"}
    assert not record["failed"]


def test_a_model_for_another_sequence_is_reported_when_it_was_asked_for(weights, dataset, measured, tmp_path):
    flair = replace(dataset, modality="flair")
    with pytest.raises(EvaluationFailed, match="expected a model for flair scans, got one for t1"):
        evaluate(_request(weights, flair, "ddpm_t1", strict=True), tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert not measured


def test_a_set_that_cannot_be_prepared_does_not_stop_the_others(
    weights, dataset, case_set, measured, tmp_path, monkeypatch
):
    def build(self, dataset, settings, levels):
        if dataset.name == "gone":
            raise EvaluationFailed("no such scans")
        return case_set

    monkeypatch.setattr(SetBuilder, "build", build)
    request = replace(_request(weights, dataset, "ddpm_t1"), sets=(replace(dataset, name="gone"), dataset))
    record = evaluate(request, tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert {item["set"] for item in record["failed"]} == {"gone"}
    assert [entry["name"] for entry in record["sets"]] == ["files"]


def test_the_tuning_split_gives_the_label_tuned_threshold_and_no_rows(
    weights, dataset, case_set, measured, tmp_path, monkeypatch
):
    others = replace(
        case_set, key="t" * 64, split="tune", healthy=[], cases=[prepared_case(400 + index) for index in range(3)]
    )
    monkeypatch.setattr(
        SetBuilder, "build", lambda self, dataset, *view: others if dataset.split == "tune" else case_set
    )
    request = replace(_request(weights, dataset, "ddpm_t1"), tuning={"files": replace(dataset, split="tune")})
    record = evaluate(request, tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert [entry["split"] for entry in record["sets"]] == [None]
    row = next(row for row in record["sets"][0]["rows"] if row["model"] == "ddpm_t1")
    assert row["thresholds"]["label_tuned"]["tuned_on"] == "tuning split"


def test_a_set_of_healthy_scans_gives_the_table_of_scans(weights, dataset, case_set, measured, tmp_path, monkeypatch):
    healthy = replace(case_set, cases=[], key="h" * 64)
    monkeypatch.setattr(SetBuilder, "build", lambda self, dataset, *view: healthy)
    record = evaluate(_request(weights, dataset, "ddpm_t1"), tmp_path / "out", tmp_path / "cache", QUICKLY)
    assert record["sets"] == []
    assert {item["model"] for item in record["healthy_only"]} == {"ddpm_t1", "intensity_t1", "atlas_zscore_t1"}
    lines = list(csv.DictReader((tmp_path / "out" / "scans.csv").open()))
    assert len(lines) == 3 * len(case_set.healthy)
    assert {line["healthy"] for line in lines} == {"1"}
