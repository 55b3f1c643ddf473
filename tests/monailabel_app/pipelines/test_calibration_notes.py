"""What results say about their calibration, also of calibrations that earlier versions wrote."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.calibration.background import Background
from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.calibration.drift import ScanDrift, bulk_distance
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.calibration_notes import drift_json, drift_of, notes_of
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.weights.model_folder import seal
from tests.monailabel_app.synthetic import person, scan


@pytest.fixture(scope="module")
def made(make_model):
    return make_model("atlas_zscore")


@pytest.fixture
def earlier(made, tmp_path):
    """The model with a calibration as it was written before there were bounds."""
    shutil.copytree(made.folder.parent / "template", tmp_path / "template")
    folder = shutil.copytree(made.folder, tmp_path / "m")
    record = json.loads((folder / "calibration.json").read_text())
    for entry in record["scores"].values():
        del entry["bounds"], entry["drift"]
        for points in entry["points"].values():
            del points["bounded"]
            for point in points.values():
                for key in ("target_ml", "false_ml", "bound_ml", "bound_level"):
                    del point[key]
    (folder / "calibration.json").write_text(json.dumps(record))
    seal(folder)
    return folder


def test_a_calibration_of_an_earlier_version_is_used_as_before(made, earlier):
    volume, brain, _ = scan(person(7))
    new, old = (predict(volume, load_model(folder), brain=brain) for folder in (made.folder, earlier))
    assert old.threshold == new.threshold
    np.testing.assert_array_equal(old.mask, new.mask)
    assert old.drift is None
    assert new.drift["healthy_scans"] == 10
    assert old.calibration["false_volume_ml"] is None
    assert new.calibration["false_volume_ml"] >= 0
    assert new.calibration["false_volume_level"] == pytest.approx(10 / 11, abs=1e-4)


def test_the_bounded_point_asks_for_a_new_calibration_where_there_is_none(earlier):
    volume, brain, _ = scan(person(7))
    with pytest.raises(InvalidSettings, match=r"earlier version.*calibrate it again"):
        predict(volume, load_model(earlier), PredictSettings(operating_point="bounded"), brain=brain)


def test_the_bounded_point_marks_no_more_than_its_bound_in_its_own_scans(made):
    calibration = Calibration.load(made.folder)
    for entry in calibration.scores.values():
        for smoothing, points in entry.points.items():
            assert max(points["bounded"].false_ml) <= 2.0
            assert points["bounded"].threshold == entry.bounds[smoothing][2.0]


def test_numbers_stay_on_one_line_of_the_file(made):
    lines = (made.folder / "calibration.json").read_text().splitlines()
    assert sum('"quantiles": [' in line and line.rstrip(",").endswith("]") for line in lines) > 0
    assert not any(line.strip().rstrip(",").replace(".", "").isdigit() for line in lines)


def test_lesions_smaller_than_the_bound_counted_are_said():
    bounded = PredictSettings(operating_point="bounded")
    assert notes_of(bounded, None, None) == ()
    (note,) = notes_of(replace(bounded, min_volume_ml=0.03), None, None)
    assert "does not hold with those of 0.03 ml" in note
    assert notes_of(PredictSettings(min_volume_ml=0.0), None, None) == ()


def test_levels_analysed_one_by_one_are_compared_one_by_one(made):
    whole = Calibration.load(made.folder)
    entry = next(iter(whole.scores.values()))
    flat = replace(entry.statistics, mean=entry.statistics.mean[..., :1], std=entry.statistics.std[..., :1])
    single = replace(entry, statistics=flat)
    values = np.abs(np.random.default_rng(0).normal(size=(20, 20, 3))).astype(np.float32)
    brain = np.ones(values.shape, bool)
    values[..., 2] *= 3
    table = entry.drift["standard"].quantiles
    expected = np.mean([bulk_distance(values[..., i].ravel(), table) for i in range(3)])
    assert drift_of(values, brain, single, "standard", erosion_mm=0.0).distance == pytest.approx(expected)
    together = bulk_distance(values.ravel(), table)
    assert drift_of(values, brain, entry, "standard", erosion_mm=0.0).distance == pytest.approx(together)
    assert drift_of(values, ~brain, entry, "standard", erosion_mm=0.0) is None


def test_a_background_that_was_brought_back_is_said_and_kept_in_the_result():
    drift = ScanDrift(0.6, 0.05, 20, 0.04, 0.12)
    wide, usual = Background(4.2, 2.1), Background(1.1, 1.0)
    assert any("divided by 2.1" in note for note in notes_of(PredictSettings(), drift, wide))
    assert not any("divided" in note for note in notes_of(PredictSettings(), drift, usual))
    assert drift_json(drift, wide)["background"] == {"ratio": 4.2, "divided_by": 2.1}
    assert drift_json(drift, None)["background"] is None
    assert drift_json(None, None) is None
