"""The input gate: what passes, what does not and why, without its files, and what predictions make of it."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.errors import CorruptModel, InvalidSettings, ScanRefused
from monailabel_app.pipelines import input_gate
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.gate_statistics import Healthy, Measured, with_network
from monailabel_app.pipelines.input_gate import FOLDER, NETWORK_FOLDER, InputGate, build_input_gate, find_gate
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.pipelines.predict import prepare as prepare_scan
from monailabel_app.types import PreparedVolume
from monailabel_app.weights.model_folder import open_model_folder, verify
from tests.monailabel_app.synthetic import person, scan, template, training_cache

SEEDS = range(200, 208)


def volumes_ml():
    return [float(scan(person(seed))[1].mask.sum()) * 8 / 1000 for seed in SEEDS]


@pytest.fixture(scope="module")
def caches():
    return training_cache(range(4)), training_cache(SEEDS)


@pytest.fixture(scope="module")
def plain_folder(caches, tmp_path_factory):
    """A gate without a network."""
    folder = tmp_path_factory.mktemp("plain") / FOLDER
    build_input_gate(folder, *caches, volumes_ml(), template(), {"name": "synthetic"})
    return folder


@pytest.fixture(scope="module")
def full_folder(caches, make_model, tmp_path_factory):
    """A gate with the tiny whole-brain network beside it, and a model that asks it."""
    base = tmp_path_factory.mktemp("full")
    shutil.copytree(make_model("latent_ddpm_3d").folder, base / NETWORK_FOLDER)
    for name in ("tiny", "template"):
        shutil.copytree(make_model("ddpm").folder.parent / name, base / name)
    build_input_gate(base / FOLDER, *caches, volumes_ml(), template(), {"name": "synthetic"})
    return base / FOLDER


@pytest.fixture(scope="module")
def model(full_folder):
    return load_model(full_folder.parent / "tiny")


@pytest.fixture(autouse=True)
def nothing_told():
    input_gate._told.clear()


def prepared(model, volume, brain) -> PreparedVolume:
    return prepare_scan(volume, model, brain=brain)


def upside_down(seed=300):
    volume, brain, _ = scan(person(seed))
    return (
        replace(volume, data=np.ascontiguousarray(volume.data[:, :, :, ::-1])),
        replace(brain, mask=np.ascontiguousarray(brain.mask[:, :, ::-1])),
    )


def test_a_healthy_scan_passes_and_gives_no_reason(model, full_folder):
    volume, brain, _ = scan(person(301))
    report = InputGate(full_folder).check(prepared(model, volume, brain), model.template)
    assert report.passed
    assert report.reasons == ()
    assert report.sentence() == ""
    assert report.judged_by == "full"
    assert report.p_value > 1 / 9
    assert report.score <= report.threshold


@pytest.mark.parametrize("kind", ["plain_folder", "full_folder"])
def test_an_upside_down_scan_is_stopped_with_that_reason(request, model, kind):
    report = InputGate(request.getfixturevalue(kind)).check(prepared(model, *upside_down()), model.template)
    assert not report.passed
    assert report.judged_by == kind.split("_")[0]
    assert report.p_value == pytest.approx(1 / 9)
    assert "upside down" in report.sentence()
    json.dumps(report.to_json(), allow_nan=False)


def test_a_missing_slab_is_named_with_its_place_and_extent(model, plain_folder):
    volume, brain, _ = scan(person(302))
    middle = volume.shape[2] // 2
    volume.data[:, :, :, middle - 3 : middle + 3] = 0
    report = InputGate(plain_folder).check(prepared(model, volume, brain), model.template)
    assert not report.passed
    assert any("brain is missing at" in reason and "%" in reason for reason in report.reasons)
    z = {name: value for name, value in report.figures.items() if name.endswith("_z")}
    assert max(z.values()) == report.score
    assert len(report.reasons) <= 4


def test_of_another_sequence_only_the_outline_is_judged(model, full_folder):
    volume, brain, _ = scan(person(303))
    inverted = replace(volume, data=1000 - volume.data)
    gate, made = InputGate(full_folder), prepared(model, inverted, brain)
    as_flair = gate.check(made, model.template, modality="flair")
    assert as_flair.judged_by == "outline"
    assert "template_correlation" not in as_flair.figures
    assert "network_error" not in as_flair.figures
    assert not gate.check(made, model.template, modality="t1").passed


def test_no_whole_brain_is_not_judged(model, plain_folder):
    volume, brain, _ = scan(person(304))
    made = prepared(model, volume, brain)
    single = replace(made, image=made.image[..., :1], brain_mask=made.brain_mask[..., :1])
    assert InputGate(plain_folder).check(single, model.template) is None


def test_the_network_s_figure_is_the_mean_z_score_over_its_levels():
    generator = np.random.default_rng(0)
    scans = [Measured({"noise": 1.0}, {}, {"mse": generator.normal(5, 1, 3)}) for _ in range(6)]
    healthy = Healthy.of([replace(s, levels={**s.levels, "perceptual": s.levels["mse"]}) for s in scans])
    mean, deviation = healthy.levels["mse"]
    far = Measured({"noise": 1.0}, {}, {"mse": mean + [1, 2, 6] * deviation, "perceptual": mean})
    z = healthy.deviations(far)
    assert z["network_error"] == pytest.approx(3 / healthy.spread["network_error"], rel=1e-6)
    assert z["network_perceptual"] == pytest.approx(0, abs=1e-6)


def test_healthy_scans_are_scored_by_the_others():
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 3.0]
    healthy = Healthy.of([Measured({"left_right": -value}, {}, {}) for value in values])
    plain = healthy.scores["plain"]
    assert plain[5] > 5  # its own value is not in the statistics that it is judged by
    assert "full" not in healthy.scores


def test_a_changed_gate_is_refused_and_its_folder_lists_its_hashes(plain_folder, tmp_path):
    folder = tmp_path / FOLDER
    shutil.copytree(plain_folder, folder)
    assert open_model_folder(folder).config["kind"] == "input_gate"
    assert InputGate(folder).hash == verify(folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("count: 8", "count: 9"))
    with pytest.raises(CorruptModel, match="sha256"):
        InputGate(folder)


def test_another_network_than_the_calibrated_one_is_left_out(full_folder, tmp_path, caplog):
    base = tmp_path / "models"
    shutil.copytree(full_folder.parent, base)
    weights = base / NETWORK_FOLDER / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    gate = InputGate(base / FOLDER)
    assert gate.network is None
    assert "judges without it" in caplog.text


def test_without_its_files_nothing_is_blocked_and_the_log_says_so_once(make_model, caplog, monkeypatch):
    lonely = load_model(make_model("ddpm").folder)
    monkeypatch.setattr("monailabel_app.pipelines.find_model.SHIPPED_MODELS", make_model("ddpm").folder.parent)
    volume, brain = upside_down()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            finding = predict(volume, lonely, PredictSettings(gate="refuse"), brain=brain)
    assert finding.gate is None
    assert finding.to_json()["gate"] is None
    assert caplog.text.count("no input gate") == 1


def test_a_damaged_gate_is_not_used_and_blocks_nothing(plain_folder, tmp_path, caplog):
    shutil.copytree(plain_folder, tmp_path / FOLDER)
    (tmp_path / FOLDER / "model.safetensors").write_bytes(b"broken")
    assert find_gate(tmp_path / FOLDER) is None
    assert find_gate(tmp_path / FOLDER) is None
    assert caplog.text.count("cannot be used") == 1


def test_a_prediction_warns_refuses_or_does_not_ask(model):
    volume, brain = upside_down()
    warned = predict(volume, model, PredictSettings(), brain=brain)
    assert not warned.gate.passed
    assert warned.warnings[0] == warned.gate.sentence()
    assert warned.to_json()["gate"]["passed"] is False
    assert "input_gate" in warned.seconds
    with pytest.raises(ScanRefused, match=r"upside down.*gate=warn") as refused:
        predict(volume, model, PredictSettings(gate="refuse"), brain=brain)
    assert refused.value.status == 422
    unasked = predict(volume, model, PredictSettings(gate="off"), brain=brain)
    assert unasked.gate is None
    np.testing.assert_array_equal(unasked.anomaly_map, warned.anomaly_map)
    with pytest.raises(InvalidSettings, match="gate out of warn, refuse, off"):
        predict(volume, model, PredictSettings(gate="maybe"), brain=brain)


def test_the_report_is_kept_with_the_analysis(full_folder, monkeypatch):
    model = load_model(full_folder.parent / "tiny")
    volume, brain, _ = scan(person(305))
    monkeypatch.setattr(type(model), "extractor", lambda self, device: type("E", (), {"extract": lambda s, v: brain})())
    cache, asked = MapCache(), []
    check = InputGate.check
    monkeypatch.setattr(InputGate, "check", lambda self, *a, **k: asked.append(1) or check(self, *a, **k))
    off = predict(volume, model, PredictSettings(gate="off"), cache=cache)
    first = predict(volume, model, PredictSettings(), cache=cache)
    again = predict(volume, model, PredictSettings(operating_point="sensitive"), cache=cache)
    assert asked == [1]
    assert off.gate is None
    assert first.gate == again.gate
    assert "input_gate" not in again.seconds
    assert len(cache) == 1


def test_a_network_set_to_other_noise_levels_is_left_out_of_the_figures():
    levels = {"mse": (np.full(3, 5.0), np.ones(3))}
    other = Measured({"noise": 1.0}, {}, {"mse": np.full(4, 9.0)})
    assert with_network(other, levels) == {"noise": 1.0}
    assert len(with_network(replace(other, levels={"mse": np.full(3, 9.0)}), levels)) == 2
