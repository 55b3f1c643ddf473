"""Every lesion's uncertainty: named by source, adding up, paid for only when it is asked for."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines import uncertainty
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.calibrate import calibrate_model
from monailabel_app.pipelines.ensemble import make_ensemble
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict, prepare
from monailabel_app.pipelines.uncertainty import PREPARATIONS, SEEDS, jittered
from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.uncertainty.jitter import Jitter
from monailabel_app.uncertainty.total_variance import SOURCES, decompose
from tests.monailabel_app.synthetic import person, save_template, scan

from .conftest import healthy_loaders

ON = PredictSettings(uncertainty=True)
STILL = Jitter(angle_deg=0, shift_mm=0, scale=0, field=0, outline_voxels=0)


def _patient():
    volume, brain, _ = scan(person(205), lesion_mm=(-10, 14, 8), lesion_radius_mm=7, contrast=0.8)
    return volume, brain


def _all_shares(finding):
    told = finding.to_json()
    for part in (told["uncertainty"], *(lesion["uncertainty"] for lesion in told["lesions"])):
        yield from ((part, key) for key in part if key.endswith("_shares"))


def test_every_lesion_is_told_with_shares_that_add_up(make_model):
    volume, brain = _patient()
    model = load_model(make_model("ddpm").folder)
    finding = predict(volume, model, ON, brain=brain)
    assert finding.lesions
    for part, key in _all_shares(finding):
        assert set(part[key]) == set(SOURCES)
        varies = part[key.replace("_shares", "_std")] > 0
        assert sum(part[key].values()) == pytest.approx(1 if varies else 0, abs=1e-6)
        assert part[key]["model"] == 0
    largest = finding.lesions[0].uncertainty
    assert largest["volume_ml_std"] > 0
    assert largest["volume_ml_shares"]["noise"] > 0
    assert largest["volume_ml_shares"]["preprocessing"] > 0
    assert largest["found_again"] > 0.5
    assert largest["reconstruction_std"] > 0
    assert finding.uncertainty["analyses"] == PREPARATIONS * SEEDS
    json.dumps(finding.to_json(), allow_nan=False)


def test_the_finding_itself_is_the_same_with_and_without(make_model):
    volume, brain = _patient()
    model = load_model(make_model("ddpm").folder)
    with_it, without = predict(volume, model, ON, brain=brain), predict(volume, model, brain=brain)
    np.testing.assert_array_equal(with_it.mask, without.mask)
    assert [lesion.volume_ml for lesion in with_it.lesions] == [lesion.volume_ml for lesion in without.lesions]
    assert without.uncertainty is None
    assert all(lesion.uncertainty is None for lesion in without.lesions)


def _with_threshold(model, threshold):
    """The model with another balanced threshold."""
    calibration, score = model.calibration, model.scores[0]
    mine = calibration.score(score)
    balanced = replace(mine.points["standard"]["balanced"], threshold=threshold)
    points = {**mine.points, "standard": {**mine.points["standard"], "balanced": balanced}}
    model.calibration = replace(calibration, scores={**calibration.scores, score: replace(mine, points=points)})
    return model


def test_the_volumes_are_those_of_the_findings_own_outline(monkeypatch, make_model):
    """The first of the repeats is the finding: a lesion has the volume in it that it has in the result."""
    volume, brain = _patient()
    model = load_model(make_model("atlas_zscore").folder)
    peak = predict(volume, model, brain=brain).lesions[0].peak_score
    samples = []
    monkeypatch.setattr(uncertainty, "decompose", lambda values: samples.append(values) or decompose(values))
    # So low that the mask ends at a share of each region's own peak.
    finding = predict(volume, _with_threshold(model, peak / 5), ON, brain=brain)
    assert samples[0][0, 0, 0] == pytest.approx(finding.lesions[0].volume_ml, rel=0.05)


def test_a_method_without_chance_has_no_share_of_noise(make_model):
    volume, brain = _patient()
    finding = predict(volume, load_model(make_model("atlas_zscore").folder), ON, brain=brain)
    assert finding.uncertainty["anomaly_score_std"] > 0
    assert all(part[key]["noise"] == 0 for part, key in _all_shares(finding))


def test_members_that_disagree_are_the_share_of_the_model(make_model, tmp_path):
    save_template(tmp_path)
    for method in ("ddpm", "atlas_zscore"):
        shutil.copytree(make_model(method).folder, tmp_path / method)
    folder = make_ensemble(tmp_path / "both", [(tmp_path / "ddpm", None), (tmp_path / "atlas_zscore", None)])
    volumes, brains = healthy_loaders()
    calibrate_model(folder, volumes, healthy={"data": "synthetic"}, brains=brains)
    volume, brain = _patient()
    finding = predict(volume, load_model(folder), ON, brain=brain)
    assert finding.uncertainty["members"] == ["ddpm", "atlas_zscore"]
    assert finding.uncertainty["anomaly_score_shares"]["model"] > 0
    assert finding.lesions
    for part, key in _all_shares(finding):
        assert sum(part[key].values()) == pytest.approx(1 if part[key.replace("_shares", "_std")] > 0 else 0, abs=1e-6)


def test_it_costs_analyses_only_when_asked_and_only_once(make_model, monkeypatch):
    volume, brain = _patient()

    class Given:
        def extract(self, _):
            return brain

    runs, examine = [], pipeline.examine
    monkeypatch.setattr(pipeline, "examine", lambda *args, **options: runs.append(1) or examine(*args, **options))
    monkeypatch.setattr(pipeline.AnomalyModel, "extractor", lambda self, device: Given())
    model, cache = load_model(make_model("ddpm").folder), MapCache()
    predict(volume, model, cache=cache)
    assert len(runs) == 1
    predict(volume, model, ON, cache=cache)
    assert len(runs) == PREPARATIONS * SEEDS
    predict(volume, model, PredictSettings(uncertainty=True, operating_point="sensitive"), cache=cache)
    assert len(runs) == PREPARATIONS * SEEDS


def test_a_preparation_that_is_not_changed_stays_the_same(make_model):
    volume, brain = _patient()
    model = load_model(make_model("ddpm").folder)
    prepared = prepare(volume, model, brain=brain)
    same = jittered(volume, prepared, model, STILL, np.random.default_rng(0))
    np.testing.assert_array_equal(same.brain_mask, prepared.brain_mask)
    np.testing.assert_allclose(same.image, prepared.image, atol=1e-5)
    other = jittered(volume, prepared, model, Jitter(), np.random.default_rng(0))
    assert 0.001 < np.abs(other.image - prepared.image)[0][prepared.brain_mask].mean() < 0.1


def test_a_corrected_bias_field_cannot_be_repeated(make_model, tmp_path):
    volume, brain = _patient()
    model = load_model(make_model("ddpm").folder)
    model.prepare_settings = PrepareSettings(bias_field=True)
    with pytest.raises(InvalidSettings, match="uncertainty=off"):
        predict(volume, model, ON, brain=brain)
