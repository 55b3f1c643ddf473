"""Corruptions through the pipeline: paired with the clean head, drift and gate told apart, nothing done twice."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.evaluation import corruption_suite as suite
from monailabel_app.pipelines.evaluation import selftest as command
from monailabel_app.pipelines.evaluation.blind_spots import SelftestSettings, blind_spots
from monailabel_app.pipelines.evaluation.healthy_set import HealthySet
from monailabel_app.pipelines.predict import AnomalyModel, load_model
from monailabel_app.pipelines.prepared_cache import ScanSource
from monailabel_app.training.cache import to_cache
from monailabel_app.types import BrainMask
from tests.monailabel_app.synthetic import grid_points, person, scan, tissue

NAMES = ("bias field 100 %", "mask: a part lost", "missing slab, top")
HEADS = 2


class _Extractor:
    """Knows the synthetic brain; what has lost its top has lost it for the mask, too."""

    def extract(self, volume):
        brain = tissue(grid_points(volume.shape, volume.affine), person(100))[1]
        return BrainMask(brain & (volume.data[0] != 0), "network")


@pytest.fixture(scope="module")
def setting(make_model, tmp_path_factory):
    made, base = make_model("intensity"), tmp_path_factory.mktemp("corrupt")
    sources = []
    for index in range(len(made.healthy)):
        volume, _, _ = scan(person(100 + index))
        path = base / f"head{index}.nii.gz"
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), path)
        sources.append(ScanSource(path, f"s{index}", f"s{index}"))
    prepared = [one.prepared for one in made.healthy]
    cache = to_cache([p.image for p in prepared], [p.brain_mask for p in prepared], [s.id for s in sources], "t1")
    return made, HealthySet("tiny", cache, tuple(sources)), base


@pytest.fixture
def found(setting, monkeypatch):
    made, healthy, base = setting
    monkeypatch.setattr(AnomalyModel, "extractor", lambda self, device: _Extractor())
    suite._model.cache_clear()
    suite._brain.cache_clear()
    model = load_model(made.folder)
    record, job = blind_spots(model, healthy, base / "out", SelftestSettings(replicates=1, workers=0), scans=HEADS)
    return model, healthy, record, job, base / "cache"


def _run(found, **options):
    model, healthy, _, job, cache = found
    return suite.corruption_suite(model, healthy, job, cache, scans=HEADS, names=NAMES, workers=0, **options)


def test_drift_is_paired_with_the_clean_head_and_a_second_run_prepares_nothing(found, monkeypatch):
    rows = {row["name"]: row for row in _run(found)}
    assert set(rows) == set(NAMES)
    shaded = rows["bias field 100 %"]
    assert shaded["scans"] == HEADS
    assert shaded["refused"] == 0
    assert shaded["scan_score"]["corrupted"] / shaded["scan_score"]["clean"] == pytest.approx(
        shaded["scan_score"]["ratio"], rel=0.3
    )
    assert shaded["scan_score"]["ratio"] > 1.1
    assert shaded["points"]["balanced"]["false_ml"]["corrupted"] > shaded["points"]["balanced"]["false_ml"]["clean"]
    clean = {row["scan_score"]["clean"] for row in rows.values() if row["scan_score"]}
    assert len(clean) == 1
    monkeypatch.setattr(suite, "prepare", _forbidden)
    monkeypatch.setattr(suite, "analyse", _forbidden)
    assert json.dumps(_run(found)) == json.dumps(list(rows.values()))


def test_what_preparation_refuses_is_counted_and_named(found, monkeypatch):
    def refuse(*args, **kwargs):
        raise EvaluationFailed("no")

    monkeypatch.setattr(suite, "prepare", refuse)
    model, healthy, _, job, base = found
    rows = suite.corruption_suite(model, healthy, job, base / "refused", scans=1, names=NAMES[:1], workers=0)
    assert rows[0]["refused"] == 1
    assert rows[0]["refusals"] == ["EvaluationFailed"]
    assert rows[0]["scan_score"] is None
    assert any("stops" in sentence for sentence in suite.sentences(rows, "balanced"))


def test_prepared_brains_alone_cannot_be_corrupted(found):
    model, healthy, _, job, cache = found
    with pytest.raises(EvaluationFailed, match="raw healthy heads"):
        suite.corruption_suite(model, HealthySet("brains", healthy.cache), job, cache, scans=1)


def test_sentences_name_what_passes_though_it_matters():
    def row(name, caught, ratio):
        return {
            "name": name,
            "scans": 4,
            "refused": 0,
            "caught": {"n": 4, "found": caught},
            "points": {"balanced": {"ratio": ratio}},
        }

    said = suite.sentences([row("a", 4, 9.0), row("b", 0, 3.0), row("c", 0, 1.1)], "balanced")
    assert "with: a." in said[0]
    assert "b (3.0 times)" in said[1]
    assert not any("c" in sentence.split(": ")[-1] for sentence in said)


def test_anomalies_in_the_raw_head_arrive_as_they_were_made(found):
    model, healthy, record, job, _ = found
    check = command.whole_pipeline(model, healthy, job, record["rows"], heads=1)
    assert check["scans"] == 1
    assert check["lesions"] >= 1
    assert {case["scan"] for case in check["cases"]} == {0}


def test_the_change_of_a_prepared_brain_is_carried_back_onto_the_heads_scale(found):
    model, healthy, _, _, _ = found
    head = healthy.head(0)
    prepared = command.prepare(head, model, "cpu")
    changed = prepared.image.copy()
    inside = np.zeros(prepared.brain_mask.shape, bool)
    inside[14:20, 18:24, 14:18] = True
    changed[0][inside & prepared.brain_mask] += 0.1
    made = command.altered_head(head, prepared, replace(prepared, image=changed))
    again = command.prepare(made, model, "cpu")
    gained = (again.image[0] - prepared.image[0])[inside & prepared.brain_mask & (changed[0] < 1)]
    assert np.median(gained) == pytest.approx(0.1, abs=0.03)
    outside = (again.image[0] - prepared.image[0])[prepared.brain_mask & ~inside]
    assert abs(np.median(outside)) < 0.02


def _forbidden(*args, **kwargs):
    raise AssertionError("this was done before")
