"""Every registered method: fit, save, load, analyse, calibrate and predict on small synthetic brains."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM, Calibration
from monailabel_app.calibration.operating_points import POINTS, TARGET_FPR
from monailabel_app.errors import CorruptModel, TrainingFailed, UnreadableVolume
from monailabel_app.pipelines.calibrate import analyse_healthy, calibration_of
from monailabel_app.pipelines.fit import describe, export_model, fit, rewrite_card
from monailabel_app.pipelines.predict import PredictSettings, analyse, load_model, predict
from monailabel_app.registry import TRAINABLE, load_method, method_info
from monailabel_app.training.checkpoint import load_state
from monailabel_app.training.completion import is_computed
from monailabel_app.weights.model_folder import open_model_folder, verify
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, person, random_cache, scan

from .conftest import HEALTHY, healthy_loaders


def test_every_method_has_a_tiny_configuration():
    assert set(TINY) == set(TRAINABLE)


def test_the_saved_model_holds_the_averaged_weights_and_its_configuration(each_model):
    opened = open_model_folder(each_model.folder)
    state = load_state(each_model.run_folder)
    for name, value in opened.weights().items():
        trained = state.ema[name]
        expected = trained.bfloat16().float() if trained.is_floating_point() else trained
        torch.testing.assert_close(value, expected, atol=0, rtol=0)
    if not is_computed(load_method(each_model.method_id)):
        assert any(not torch.equal(state.ema[name], state.model[name]) for name in state.ema)
    model = load_model(each_model.folder)
    assert model.config == TINY[each_model.method_id]
    assert model.scores == method_info(each_model.method_id).scores
    assert not model.network.training
    assert opened.config["training"]["steps"] == (1 if is_computed(load_method(each_model.method_id)) else 20)
    assert opened.config["training_data"] == {"name": "synthetic"}


def test_the_evidence_lies_in_the_brain_and_repeats_from_its_seed(each_model):
    model, prepared = load_model(each_model.folder), each_model.healthy[0].prepared
    seen = []
    first = analyse(prepared, model, PredictSettings(seed=3), progress=lambda stage, share: seen.append(share))
    again = analyse(prepared, model, PredictSettings(seed=3))
    outside = ~prepared.brain_mask
    for score in method_info(each_model.method_id).scores:
        raw = first.raw(score)
        assert raw.shape == prepared.brain_mask.shape
        assert raw.dtype == np.float32
        assert np.isfinite(raw).all()
        assert (raw[outside] == 0).all()
        assert raw[prepared.brain_mask].std() > 0
        np.testing.assert_array_equal(again.raw(score), raw)
    if first.reconstruction is not None:
        assert first.reconstruction.min() >= 0
        assert first.reconstruction.max() <= 1
        assert (first.reconstruction[outside] == 0).all()
        assert first.reconstruction[prepared.brain_mask].std() > 0
    assert all(np.isfinite(value) for value in first.evidence.figures.values())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_another_seed_gives_another_noise(make_model):
    made = make_model("ddpm")
    model, prepared = load_model(made.folder), made.healthy[0].prepared
    one, other = (analyse(prepared, model, PredictSettings(seed=seed)) for seed in (3, 4))
    assert not np.array_equal(one.reconstruction, other.reconstruction)


def test_slices_without_brain_cost_nothing_and_stay_zero(make_model):
    model = load_model(make_model("ddpm").folder)
    image = torch.zeros(32, 40, 6)
    image[8:24, 8:32, 2] = 0.5
    batches = []

    def network(noisy, timesteps):
        batches.append(len(noisy))
        return noisy

    generator = torch.Generator().manual_seed(0)
    out = model.method.analyse(network, model.config, image, image > 0, generator, batch_size=4).reconstruction
    assert set(batches) == {1}
    assert (out[:, :, [0, 1, 3, 4, 5]] == 0).all()
    assert (out[:, :, 2] != 0).any()


def test_the_calibration_covers_every_score_smoothing_and_operating_point(each_model):
    calibration = Calibration.load(each_model.folder)
    assert tuple(calibration.scores) == method_info(each_model.method_id).scores
    assert calibration.healthy["scans"] == HEALTHY
    for entry in calibration.scores.values():
        assert (entry.statistics.std > 0).all()
        assert list(entry.points) == list(entry.scan_scores) == list(SMOOTHING_MM)
        for smoothing, points in entry.points.items():
            assert tuple(points) == POINTS
            thresholds = [points[name].threshold for name in TARGET_FPR]
            assert thresholds == sorted(thresholds)
            assert len(entry.scan_scores[smoothing]) == HEALTHY
            for name, target in TARGET_FPR.items():
                assert points[name].measured_fpr == pytest.approx(target, abs=2e-3)
            for point in points.values():
                assert len(point.false_ml) == HEALTHY


@pytest.mark.parametrize("last", [False, True])
def test_a_prediction_is_complete_and_on_the_scans_own_grid(each_model, last):
    volume, brain, _ = scan(person(7), shape=(33, 41, 37), lesion_mm=(-10, 14, 8), contrast=0.8)
    model = load_model(each_model.folder)
    score = model.scores[-1] if last else None
    finding = predict(volume, model, PredictSettings(score=score), brain=brain)
    assert finding.mask.shape == finding.anomaly_map.shape == volume.shape
    assert finding.mask.dtype == np.uint8
    assert set(np.unique(finding.mask)) <= {0, 1}
    assert (finding.anomaly_map[~brain.mask] == 0).all()
    assert finding.anomaly_map.min() >= 0
    np.testing.assert_array_equal(finding.affine, volume.affine)
    assert finding.model_hash == verify(each_model.folder)
    assert finding.settings["score"] == (score or model.scores[0])
    assert 1 / (HEALTHY + 1) <= finding.p_value <= 1
    told = finding.to_json()
    json.dumps(told, allow_nan=False)
    assert [step["step"] for step in told["preprocessing"]] == [
        "read", "brain_mask", "bias_field", "align", "resample", "normalize",
    ]  # fmt: skip
    assert {"alignment", "reconstruction", "scoring", "postprocessing"} <= set(told["seconds"])


def test_exporting_again_drops_the_calibration_of_the_replaced_weights(make_model, tmp_path):
    each_model = make_model("ddpm")
    folder = tmp_path / "tiny"
    shutil.copytree(each_model.folder, folder)
    rewrite_card(folder, "# measured\n")
    export_model(each_model.run_folder, folder, modality="t1", training_data={}, overrides={"draws": 1})
    assert not (folder / "calibration.json").exists()
    assert open_model_folder(folder).config["config"]["draws"] == 1
    with pytest.raises(CorruptModel, match="calibrate"):
        load_model(folder)


def test_an_override_the_method_does_not_know_is_refused(each_model, tmp_path):
    with pytest.raises(CorruptModel, match="temperature"):
        export_model(
            each_model.run_folder, tmp_path / "m", modality="t1", training_data={}, overrides={"temperature": 1}
        )


def test_weights_of_another_network_are_refused(make_model, tmp_path):
    each_model = make_model("ddpm")
    folder = tmp_path / "tiny"
    export_model(each_model.run_folder, folder, modality="t1", training_data={})
    shutil.copytree(each_model.folder.parent / "template", tmp_path / "template")
    config = (folder / "config.yaml").read_text().replace("num_res_blocks: 1", "num_res_blocks: 2")
    (folder / "config.yaml").write_text(config)
    rewrite_card(folder, "# sealed again\n")
    with pytest.raises(CorruptModel, match="those of another one"):
        load_model(folder)


def test_a_listing_tells_id_hash_and_method(each_model):
    told = describe(each_model.folder)
    assert (told["id"], told["method"], told["kind"]) == ("tiny", each_model.method_id, "anomaly")
    assert told["hash"] == verify(each_model.folder)


def test_fewer_than_five_healthy_scans_are_refused(each_model):
    with pytest.raises(TrainingFailed, match=r"at least 5 .*20 or more .* got 4"):
        calibration_of(each_model.healthy[:4], ["l1"], erosion_mm=2.0, healthy={})


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(each_model, tmp_path):
    method_id, cache = each_model.method_id, each_model.folder.parent / "cache.safetensors"
    if is_computed(load_method(method_id)):
        pytest.skip("computed in one pass, not trained")
    settings = replace(TINY_TRAINING, steps=20, checkpoint_every=10)
    presets = load_method(method_id).PRESETS
    presets["synthetic"] = TINY[method_id]

    class Stop(Exception):
        pass

    def stop(now):
        if now.checkpoint and now.step == 10:
            raise Stop

    try:
        with pytest.raises(Stop):
            fit(method_id, cache, tmp_path / "run", settings, preset="synthetic", progress=stop)
        resumed = fit(method_id, cache, tmp_path / "run", settings, preset="synthetic", resume=True)
    finally:
        del presets["synthetic"]
    whole = load_state(each_model.run_folder)
    for name, value in whole.ema.items():
        torch.testing.assert_close(resumed.ema[name], value, atol=0, rtol=0, msg=name)


def test_an_unknown_preset_is_refused(tmp_path):
    random_cache(1).save(tmp_path / "cache.safetensors")
    with pytest.raises(TrainingFailed, match=r"compact.*got 'huge'"):
        fit("ddpm", tmp_path / "cache.safetensors", tmp_path / "run", TINY_TRAINING, preset="huge")


@pytest.mark.parametrize("method_id", TRAINABLE)
def test_every_preset_builds_and_takes_the_template_s_slices(method_id):
    method = load_method(method_id)
    for name, config in method.PRESETS.items():
        if hasattr(config, "denoiser"):
            assert 72 % config.denoiser.size_multiple == 0, name
            assert 96 % config.denoiser.size_multiple == 0, name
    assert {"compact", "large", "tiny"} <= set(method.PRESETS)
    for name in ("compact", "tiny"):
        network, config = method.build(method.PRESETS[name]), method.PRESETS[name]
        volumes = getattr(method, "SAMPLES", "slices") == "volumes"
        batch = torch.rand(2, 1, 72, 96, *((80,) if volumes else ()), generator=torch.Generator().manual_seed(0))
        if hasattr(method, "fit_cache"):
            continue
        loss = method.training_loss(network, config, batch, torch.Generator().manual_seed(0))
        assert loss.ndim == 0
        assert torch.isfinite(loss)


def test_a_run_is_not_overwritten_unless_it_is_resumed(make_model):
    made = make_model("ddpm")
    before = (made.run_folder / "last.safetensors").read_bytes()
    with pytest.raises(TrainingFailed, match="--resume"):
        fit("ddpm", made.folder.parent / "cache.safetensors", made.run_folder, TINY_TRAINING)
    assert (made.run_folder / "last.safetensors").read_bytes() == before


def test_a_broken_healthy_scan_is_left_out_of_the_calibration(make_model, caplog):
    made = make_model("ddpm")
    volumes, brains = healthy_loaders(2)

    def broken():
        raise UnreadableVolume("expected a NIfTI image, got something else")

    scans = analyse_healthy([volumes[0], broken, volumes[1]], load_model(made.folder), brains=[brains[0], *brains])
    assert len(scans) == 2
    assert "healthy scan 2 of 3 left out" in caplog.text
