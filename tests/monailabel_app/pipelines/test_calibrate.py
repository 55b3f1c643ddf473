"""Calibrating on prepared scans: the same as on scans as they come, and honest about how few they are."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.calibration.conformal import record_of
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines.analysis import Analysis
from monailabel_app.pipelines.calibrate import analyse_cache, calibrate_on, calibrate_prepared, calibration_of
from monailabel_app.pipelines.predict import load_model, predict
from monailabel_app.training.cache import to_cache
from monailabel_app.weights.model_folder import verify
from tests.monailabel_app.synthetic import person, scan

from .conftest import HEALTHY


@pytest.fixture(scope="module")
def made(make_model):
    return make_model("ddpm")


@pytest.fixture(scope="module")
def held_out(made):
    """The scans the model was calibrated on, as a training cache holds them."""
    prepared = [healthy.prepared for healthy in made.healthy]
    ids = [f"s{i}" for i in range(HEALTHY)]
    return to_cache([p.image for p in prepared], [p.brain_mask for p in prepared], ids, "t1")


@pytest.fixture
def copy(made, tmp_path):
    """The model in a folder of its own, with the template it needs."""
    shutil.copytree(made.folder.parent / "template", tmp_path / "template")
    return shutil.copytree(made.folder, tmp_path / "copy")


def test_prepared_scans_calibrate_like_the_scans_they_were_made_from(made, held_out, copy):
    before = Calibration.load(made.folder)
    told = []
    after, scans = calibrate_prepared(
        copy, held_out, healthy={"data": "synthetic"}, progress=lambda *now: told.append(now)
    )
    assert (len(scans), told[-1]) == (HEALTHY, (HEALTHY, HEALTHY))
    assert list(after.scores) == list(before.scores)
    assert after.erosion_mm == before.erosion_mm
    for score, entry in before.scores.items():
        same = after.scores[score]
        inside = held_out.brain_masks.all(dim=0).numpy()
        assert np.abs(same.statistics.mean - entry.statistics.mean)[inside].mean() < 0.5 / 255
        for smoothing, points in entry.points.items():
            for name, point in points.items():
                assert same.points[smoothing][name].threshold == pytest.approx(point.threshold, rel=0.03)
            np.testing.assert_allclose(same.scan_scores[smoothing], entry.scan_scores[smoothing], rtol=0.05)
    assert verify(copy) == load_model(copy).hash
    assert Calibration.load(copy).healthy == {
        "data": "synthetic",
        "scans": HEALTHY,
        "patients": HEALTHY,
        "false_volume": record_of(HEALTHY, depth=32),
        "warnings": list(after.warnings),
    }


def test_only_the_chosen_scans_are_used(held_out, copy):
    calibration, scans = calibrate_prepared(copy, held_out, [1, 3, 5, 7, 9], healthy={})
    assert len(scans) == calibration.healthy["scans"] == 5
    np.testing.assert_array_equal(scans[1].prepared.brain_mask, held_out.brain_masks[3].numpy())


def test_few_healthy_scans_are_told_in_every_result(held_out, copy):
    calibrate_prepared(copy, held_out, range(7), healthy={})
    volume, brain, _ = scan(person(7))
    finding = predict(volume, load_model(copy), brain=brain)
    assert any("calibrated on 7 healthy scans only" in warning for warning in finding.to_json()["warnings"])


def test_twenty_scans_warn_of_nothing_and_a_stale_warning_goes(made):
    scans = [*made.healthy, *made.healthy]
    record = calibration_of(scans, ["l1"], erosion_mm=2.0, healthy={"warnings": ["stale"]}).healthy
    assert (record["scans"], record["warnings"]) == (20, [])


def test_a_patient_s_other_scans_do_not_vouch_for_it(made):
    """Standardised with the statistics of their own second scans, healthy scans look more normal than new ones do."""
    generator = np.random.default_rng(0)
    scans = [
        Analysis(h.prepared, replace(h.evidence, reconstruction=h.reconstruction + own_anatomy(generator, h)))
        for h in made.healthy[:6]
    ]
    twice = [scan for scan in scans for _ in range(2)]
    patients = [str(i) for i in range(6) for _ in range(2)]
    options = {"erosion_mm": 2.0, "healthy": {}}
    honest = calibration_of(twice, ["l1"], patients=patients, **options)
    vouched = calibration_of(twice, ["l1"], **options)
    point, rosy = (c.scores["l1"].points["none"]["balanced"] for c in (honest, vouched))
    assert point.threshold > 1.05 * rosy.threshold
    assert honest.healthy["patients"] == 6
    assert "12 healthy scans of 6 patients only" in honest.warnings[0]
    with pytest.raises(TrainingFailed, match="got 12 of 4"):
        calibration_of(twice, ["l1"], patients=[str(i % 4) for i in range(12)], **options)


def own_anatomy(generator, healthy):
    """What a person's scans have in common and other people's have not: (X, Y, Z), smooth over centimetres."""
    made = ndimage.gaussian_filter(generator.normal(size=healthy.reconstruction.shape), 3.0)
    return (0.2 * made / made.std()).astype(np.float32)


def test_scans_prepared_for_another_template_are_refused(made):
    image, mask = np.zeros((1, 4, 5, 6), np.float32), np.ones((4, 5, 6), bool)
    with pytest.raises(TrainingFailed, match="model's grid"):
        analyse_cache(to_cache([image], [mask], ["a"], "t1"), load_model(made.folder))


def test_a_model_is_calibrated_on_a_cache_or_a_folder_of_scans_and_keeps_their_tails(copy, held_out, tmp_path):
    folder = copy
    held_out.save(tmp_path / "held_out.safetensors")
    calibration = calibrate_on(folder, tmp_path / "held_out.safetensors")
    assert calibration.healthy["scans"] == HEALTHY
    assert calibration.healthy["data"] == "held_out.safetensors"
    assert len(load_model(folder).calibration.score("signed").tails["standard"]) == len(TAIL_SHARES)
    with pytest.raises(TrainingFailed, match="found none"):
        calibrate_on(folder, tmp_path / "nowhere")
