"""An ensemble is a model like any other: made of exactly its members, calibrated without anybody's own statistics."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.calibration.operating_points import TARGET_FPR
from monailabel_app.errors import CorruptModel, InvalidSettings, PublishFailed, TrainingFailed
from monailabel_app.io.images import write_map
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.calibrate import calibrate_model
from monailabel_app.pipelines.ensemble import make_ensemble
from monailabel_app.pipelines.fit import fit, rewrite_card
from monailabel_app.pipelines.healthy_reference import HealthyReference, without_own_person
from monailabel_app.pipelines.predict import PredictSettings, analyse, load_model, predict
from monailabel_app.pipelines.site_options import SiteOptions
from monailabel_app.weights.listing import read_entry
from monailabel_app.weights.model_folder import open_model_folder, seal
from tests.monailabel_app.synthetic import person, save_template, scan

from .conftest import HEALTHY, healthy_loaders

SCORES = ("fisher", "harmonic", "strongest")


@pytest.fixture(scope="module")
def made(make_model, tmp_path_factory):
    """(root, ensemble folder): the tiny ddpm twice, with two of its scores, and what they make together."""
    root = tmp_path_factory.mktemp("ensemble") / "model_weights"
    save_template(root)
    for name in ("one", "two"):
        shutil.copytree(make_model("ddpm").folder, root / name)
    # A model is what its files say: written otherwise, the second one's calibration makes it another model.
    calibration = root / "two" / "calibration.json"
    calibration.write_text(json.dumps(json.loads(calibration.read_text()), indent=3))
    seal(root / "two")
    folder = make_ensemble(root / "both", [(root / "one", None), (root / "two", "l1")])
    volumes, brains = healthy_loaders()
    calibrate_model(folder, volumes, healthy={"data": "synthetic"}, brains=brains)
    return root, folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of everything, to be changed."""
    shutil.copytree(made[0], tmp_path / "model_weights")
    return tmp_path / "model_weights"


def _patient():
    volume, brain, lesion = scan(person(107), lesion_mm=(-10, 14, 8), contrast=0.8)
    return volume, brain, lesion


def test_it_is_calibrated_for_every_score_and_operating_point(made):
    calibration = Calibration.load(made[1])
    assert tuple(calibration.scores) == SCORES
    for entry in calibration.scores.values():
        for points in entry.points.values():
            for name, target in TARGET_FPR.items():
                assert points[name].measured_fpr == pytest.approx(target, abs=2e-3)
    assert calibration.healthy["scans"] == HEALTHY


def test_it_predicts_like_any_model_and_marks_the_lesion(made):
    volume, brain, lesion = _patient()
    model = load_model(made[1])
    for score in SCORES:
        finding = predict(volume, model, PredictSettings(score=score), brain=brain, images=True)
        assert finding.anomaly_map.shape == volume.shape
        assert finding.anomaly_map[lesion].mean() > 3 * finding.anomaly_map[brain.mask & ~lesion].mean()
        json.dumps(finding.to_json(), allow_nan=False)
    assert finding.model_id == "both"
    assert finding.reconstruction is not None


def test_its_reconstruction_varies_as_its_members_do_within_and_among_each_other(made):
    volume, brain, _ = _patient()
    model = load_model(made[1])
    scan = analyse(pipeline.prepare(volume, model, brain=brain), model, PredictSettings())
    one, two = scan.evidence.members
    np.testing.assert_allclose(scan.reconstruction, (one.reconstruction + two.reconstruction) / 2, atol=1e-6)
    among = np.var([one.reconstruction, two.reconstruction], axis=0)
    np.testing.assert_allclose(scan.evidence.variance, (one.variance + two.variance) / 2 + among, atol=1e-6)


def test_it_is_served_like_any_model(made, tmp_path, monkeypatch):
    pytest.importorskip("monailabel")
    from lib.configs import METHODS
    from lib.infers import AnomalyInferTask
    from lib.runner import ModelRunner

    volume, brain, _ = _patient()
    monkeypatch.setattr(pipeline.AnomalyModel, "extractor", lambda self, device: _Given(brain))
    write_map(tmp_path / "scan.nii.gz", volume.data[0], volume)
    task = AnomalyInferTask(read_entry("both", made[1]), METHODS["ensemble"], ModelRunner(), MapCache())
    assert task.info()["config"]["score"] == list(SCORES)
    label, told = task({"image": str(tmp_path / "scan.nii.gz"), "score": "harmonic", "device": "cpu"})
    Path(label).unlink()
    assert told["model"]["id"] == "both"
    assert told["settings"]["score"] == "harmonic"
    assert told["lesion_count"] > 0


def test_members_and_ensemble_share_their_analyses_through_the_cache(made, monkeypatch):
    volume, brain, _ = _patient()
    runs = []
    examine = pipeline.examine
    monkeypatch.setattr(pipeline, "examine", lambda *args, **kwargs: runs.append(1) or examine(*args, **kwargs))
    monkeypatch.setattr(pipeline.AnomalyModel, "extractor", lambda self, device: _Given(brain))
    cache = MapCache()
    predict(volume, load_model(made[0] / "one"), cache=cache)
    assert len(runs) == 1
    predict(volume, load_model(made[1]), cache=cache)
    assert len(runs) == 2  # only the other member's
    predict(volume, load_model(made[0] / "two"), cache=cache)
    predict(volume, load_model(made[1]), PredictSettings(score="strongest"), cache=cache)
    assert len(runs) == 2


class _Given:
    def __init__(self, brain):
        self._brain = brain

    def extract(self, volume):
        return self._brain


def test_a_new_card_of_a_member_changes_nothing_but_other_weights_are_refused(copy):
    rewrite_card(copy / "one", "# measured at last\n")
    assert load_model(copy / "both").members[0].id == "one"
    config = copy / "one" / "config.yaml"
    config.write_text(config.read_text().replace("draws: 2", "draws: 1"))
    seal(copy / "one")
    with pytest.raises(CorruptModel, match=r"member one of the ensemble both .*, got .*make the ensemble again"):
        load_model(copy / "both")


def test_the_version_it_was_made_with_is_found_when_another_serves(copy):
    (copy.parent / "model" / "one" / "versions").mkdir(parents=True)
    shutil.move(copy / "one", copy.parent / "model" / "one" / "versions" / "0002")
    assert load_model(copy / "both").members[0].id == "one@0002"


def test_a_member_that_is_gone_is_named(copy):
    shutil.rmtree(copy / "two")
    with pytest.raises(CorruptModel, match=r"member two .* got no such model"):
        load_model(copy / "both")


def test_nobody_is_judged_by_statistics_of_their_own(made, make_model):
    model = load_model(made[1])
    scans = [analyse(item.prepared, model, PredictSettings()) for item in make_model("ddpm").healthy]
    left_out = without_own_person(model, scans)
    for with_own, without in zip(scans, left_out, strict=True):
        assert not np.array_equal(with_own.raw("fisher"), without.raw("fisher"))
    # A scan looks more normal beside statistics that it is part of.
    assert np.mean([s.raw("fisher").mean() for s in scans]) < np.mean([s.raw("fisher").mean() for s in left_out])
    assert HealthyReference(model, scans).same_scans("fisher")
    # Two scans of one person are left out together.
    pairs = without_own_person(model, scans, [str(i // 2) for i in range(len(scans))])
    assert not np.array_equal(pairs[0].raw("fisher"), left_out[0].raw("fisher"))


def test_what_cannot_be_combined_is_refused(made, copy, tmp_path):
    one, two = copy / "one", copy / "two"
    with pytest.raises(InvalidSettings, match="at least two"):
        make_ensemble(copy / "lonely", [(one, None)])
    with pytest.raises(InvalidSettings, match="name its members"):
        make_ensemble(copy / "nested", [(one, None), (copy / "both", None)])
    with pytest.raises(InvalidSettings, match="expected a score out of"):
        make_ensemble(copy / "wrong", [(one, None), (two, "loudness")])
    with pytest.raises(PublishFailed, match="choose another name"):
        make_ensemble(copy / "one", [(one, None), (two, None)])
    record = json.loads((two / "calibration.json").read_text())
    for entry in record["scores"].values():
        del entry["tails"]
    (two / "calibration.json").write_text(json.dumps(record))
    seal(two)
    with pytest.raises(InvalidSettings, match="train it again"):
        make_ensemble(copy / "old", [(one, None), (two, None)])
    config = one / "config.yaml"
    config.write_text(config.read_text() + "normalization: median\n")
    seal(one)
    with pytest.raises(InvalidSettings, match="prepare a scan in one way"):
        make_ensemble(copy / "mixed", [(one, None), (made[0] / "two", None)])


def test_an_ensemble_can_be_made_again_under_its_name(copy):
    make_ensemble(copy / "both", [(copy / "one", "l1"), (copy / "two", None)])
    assert open_model_folder(copy / "both").config["config"]["scores"] == ["l1", "signed"]
    assert not (copy / "both" / "calibration.json").exists()


def test_an_ensemble_is_made_not_trained(tmp_path):
    with pytest.raises(TrainingFailed, match="models ensemble"):
        fit("ensemble", tmp_path / "cache.safetensors", tmp_path / "run", None)
    with pytest.raises(InvalidSettings, match="models ensemble"):
        SiteOptions(method="ensemble")
