"""A site's own calibration is used by default, named in every result, and changes nothing that is kept."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from monailabel_app import cli, cli_calibrate
from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.errors import CorruptModel, InvalidSettings, TrainingFailed
from monailabel_app.pipelines import site_calibration
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.calibrate import calibrate_prepared
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.pipelines.site_calibration import calibrate_site, healthy_scans
from monailabel_app.preprocessing.normalize import HIGH_LEVEL, HIGH_PERCENTILE, LOW_PERCENTILE
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.weights import site_calibrations
from monailabel_app.weights.model_folder import seal, verify, write_config
from monailabel_app.weights.site_calibrations import used_id
from tests.monailabel_app.synthetic import person, scan

from .conftest import HEALTHY

GAMMA = 3.0  # of the site's scanner


@pytest.fixture(scope="module")
def made(make_model):
    return make_model("atlas_zscore")


@pytest.fixture(scope="module")
def site_cache(made, tmp_path_factory):
    """The same people on a scanner with another contrast."""
    prepared = [healthy.prepared for healthy in made.healthy]
    images = [np.clip(HIGH_LEVEL * (p.image / HIGH_LEVEL) ** GAMMA, 0, 1).astype(np.float32) for p in prepared]
    cache = to_cache(images, [p.brain_mask for p in prepared], [f"s{i}" for i in range(HEALTHY)], "t1")
    path = tmp_path_factory.mktemp("site") / "own_scanner.safetensors"
    cache.save(path)
    return path


@pytest.fixture
def folder(made, tmp_path):
    """The model as a shipped one of an app."""
    shutil.copytree(made.folder.parent / "template", tmp_path / "model_weights" / "template")
    return shutil.copytree(made.folder, tmp_path / "model_weights" / "m")


@pytest.fixture(scope="module")
def volume_and_brain():
    volume, brain, _ = scan(person(7))
    low, high = np.percentile(volume.data[0][brain.mask], (LOW_PERCENTILE, HIGH_PERCENTILE))
    return replace(volume, data=np.maximum((volume.data - low) / (high - low), 0).astype(np.float32) ** GAMMA), brain


def test_the_result_names_the_calibration_and_the_thresholds_are_the_sites(folder, site_cache, volume_and_brain):
    volume, brain = volume_and_brain
    model, untouched = load_model(folder), verify(folder)
    before = predict(volume, model, brain=brain)
    report = calibrate_site(folder, site_cache)
    after = predict(volume, model, brain=brain)  # the model at hand follows
    own = predict(volume, model, PredictSettings(calibration="shipped"), brain=brain)
    assert verify(folder) == untouched
    assert before.calibration["id"] == own.calibration["id"] == "shipped"
    assert own.threshold == before.threshold
    named = {key: after.calibration[key] for key in ("kind", "id", "hash", "healthy_scans", "data")}
    assert named == {
        "kind": "site",
        "id": report.made.id,
        "hash": report.made.hash,
        "healthy_scans": HEALTHY,
        "data": "own_scanner",
    }
    site = Calibration.load(report.made.folder).score(model.scores[0])
    assert after.threshold == site.points["standard"]["balanced"].threshold != own.threshold
    assert after.model_hash == own.model_hash
    assert after.settings["calibration"] == "site"
    json.dumps(after.to_json(), allow_nan=False)


def test_another_scanner_drifts_before_and_no_longer_afterwards(folder, site_cache, volume_and_brain):
    volume, brain = volume_and_brain
    model = load_model(folder)
    report = calibrate_site(folder, site_cache)
    own = predict(volume, model, PredictSettings(calibration="shipped"), brain=brain)
    site = predict(volume, model, brain=brain)
    assert own.drift["drifted"]
    assert any("calibrate on own healthy scans" in warning for warning in own.warnings)
    assert site.drift["distance"] < own.drift["distance"] / 2
    assert not site.drift["drifted"]
    assert report.drift["p_value"] < 0.05
    assert (report.drift["scans"], report.drift["calibration_scans"]) == (HEALTHY, HEALTHY)
    assert report.volumes["balanced"]["own"][0] > report.volumes["balanced"]["site"][0]


def test_the_analysis_is_not_run_again(folder, site_cache, volume_and_brain, monkeypatch):
    """With brain masks given nothing is cached, so the brain is the app's own here."""
    volume, brain = volume_and_brain
    model, cache = load_model(folder), MapCache()

    class Extractor:
        def extract(self, _):
            return brain

    monkeypatch.setattr(type(model), "extractor", lambda self, device: Extractor())
    predict(volume, model, cache=cache)
    calibrate_site(folder, site_cache)
    monkeypatch.setattr("monailabel_app.pipelines.predict.examine", None)
    assert predict(volume, model, cache=cache).calibration["kind"] == "site"


def test_it_holds_what_a_calibration_in_place_would(folder, site_cache, tmp_path):
    report = calibrate_site(folder, site_cache)
    shutil.copytree(folder.parent / "template", tmp_path / "copy" / "template")
    other = shutil.copytree(folder, tmp_path / "copy" / "m")
    in_place, _ = calibrate_prepared(other, TrainingCache.load(site_cache), healthy={})
    for score, entry in in_place.scores.items():
        same = report.site.score(score)
        assert same.points == entry.points
        assert same.bounds == entry.bounds
        assert same.scan_scores == entry.scan_scores
        np.testing.assert_array_equal(same.statistics.mean, entry.statistics.mean)


def test_changed_weights_are_refused_with_the_way_out(folder, site_cache, volume_and_brain):
    volume, brain = volume_and_brain
    calibrate_site(folder, site_cache)
    config = dict(load_model(folder).meta)
    write_config(folder, {**config, "description": "another"})
    seal(folder)
    model = load_model(folder)
    with pytest.raises(CorruptModel, match="the model has changed since"):
        predict(volume, model, brain=brain)
    assert predict(volume, model, PredictSettings(calibration="shipped"), brain=brain).calibration["kind"] == "shipped"
    with pytest.raises(InvalidSettings, match="site, shipped"):
        predict(volume, model, PredictSettings(calibration="mine"), brain=brain)


def test_weights_replaced_while_it_is_made_do_not_get_it(folder, site_cache, monkeypatch):
    analyses = site_calibration._analyses

    def replacing(*arguments):
        made = analyses(*arguments)
        write_config(folder, {**load_model(folder).meta, "description": "another"})
        seal(folder)
        return made

    monkeypatch.setattr(site_calibration, "_analyses", replacing)
    report = calibrate_site(folder, site_cache)
    assert not report.made.fits
    with pytest.raises(CorruptModel, match="the model has changed since"):
        site_calibrations.active(folder)


def test_an_ensemble_is_calibrated_and_its_members_are_not_touched(folder, site_cache, volume_and_brain, tmp_path):
    from monailabel_app.pipelines.ensemble import make_ensemble

    volume, brain = volume_and_brain
    twin = shutil.copytree(folder, folder.parent / "twin")
    scores = load_model(folder).scores
    both = make_ensemble(folder.parent / "both", [(folder, scores[0]), (twin, scores[-1])])
    calibrate_prepared(both, TrainingCache.load(site_cache), healthy={})
    model = load_model(both)
    raw = predict(volume, model, brain=brain)
    calibrate_site(folder, site_cache)  # a member's site calibration does not reach into the ensemble
    again = predict(volume, model, brain=brain)
    np.testing.assert_array_equal(raw.anomaly_map, again.anomaly_map)
    report = calibrate_site(both, site_cache)
    assert predict(volume, model, brain=brain).calibration["id"] == report.made.id


def test_too_few_scans_are_refused_and_leave_nothing(folder, site_cache, tmp_path):
    TrainingCache.load(site_cache).select(range(4)).save(tmp_path / "few.safetensors")
    with pytest.raises(TrainingFailed, match="got 4 of 4 out of 4"):
        calibrate_site(folder, tmp_path / "few.safetensors")
    assert not (folder.parent.parent / "model").exists()


def test_a_folder_of_scans_tells_patients_by_their_names(tmp_path):
    for name in ("sub-1_ses-1_T1w", "sub-1_ses-2_T1w", "sub-2_T1w"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert [item.patient for item in healthy_scans(tmp_path)] == ["sub-1", "sub-1", "sub-2"]
    with pytest.raises(TrainingFailed):
        healthy_scans(tmp_path / "nowhere")


def test_a_description_gives_the_scans_that_it_calls_healthy(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "scans" / f"{name}.nii.gz")
    text = "name: mine\nmodality: t1\nlayout: folder\nroot: scans\nimage: '{id}.nii.gz'\n"
    (tmp_path / "ours.yaml").write_text(text + "healthy: true\n")
    assert len(healthy_scans(tmp_path / "ours.yaml")) == 2


def test_the_command_line_makes_lists_chooses_and_removes(folder, site_cache, monkeypatch):
    monkeypatch.setattr(cli_calibrate, "ROOT", folder.parent.parent)

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, ["calibrate", "--model", "m", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    text = run("--healthy", str(site_cache))
    used = used_id(folder)
    assert f"site calibration {used}: {HEALTHY} healthy scans of {HEALTHY} patients" in text
    assert "bounded" in text
    assert "Kolmogorov-Smirnov distance" in text
    assert f"in use: site calibration {used}" in text
    assert "calibrated on 10 healthy scans only" in text
    assert f"{used}  m" in run("--list")
    assert "of other weights" not in run("--list")
    run("--use", "shipped")
    assert "the model's own calibration" in run("--list")
    second = run("--healthy", str(site_cache), "--only-store")
    assert "in use: the model's own calibration" in second
    run("--remove", used)
    assert used not in run("--list")
    assert "got none or several" in run("--list", "--use", "shipped", code=2)
    assert "got none or several" in run(code=2)


@pytest.mark.slow
def test_a_real_scan_is_read_with_the_sites_calibration(tmp_path):
    """The shipped atlas model on the sample scan; its site: the same brain with the grey values of eight scanners."""
    from monailabel_app.io.images import read_volume
    from monailabel_app.pipelines.predict import SHIPPED_MODELS, prepare
    from tests.conftest import DATA

    if not (SHIPPED_MODELS / "atlas_zscore_t1").is_dir():
        pytest.skip("the shipped model is not there")
    for name in ("atlas_zscore_t1", "template", "brain_extraction"):
        shutil.copytree(SHIPPED_MODELS / name, tmp_path / "model_weights" / name)
    folder = tmp_path / "model_weights" / "atlas_zscore_t1"
    model, volume = load_model(folder), read_volume(DATA / "mslub_t1_2mm.nii.gz")
    prepared = prepare(volume, model)
    generator = np.random.default_rng(0)
    noise = (0.02 * generator.normal(size=prepared.image.shape) for _ in range(8))
    gammas = np.linspace(1.5, 1.8, 8)
    images = [
        np.where(prepared.brain_mask, np.clip(prepared.image**gamma + n, 0, 1), 0)
        for gamma, n in zip(gammas, noise, strict=True)
    ]
    cache = to_cache([i.astype(np.float32) for i in images], [prepared.brain_mask] * 8, list("abcdefgh"), "t1")
    cache.save(tmp_path / "site.safetensors")
    report = calibrate_site(folder, tmp_path / "site.safetensors")
    assert site_calibrations.active(folder).id == report.made.id
    assert report.drift["drifted"]
    finding = predict(volume, load_model(folder))
    assert finding.calibration["id"] == report.made.id
    assert finding.drift["healthy_scans"] == 8
    assert any("holds for 89 % of healthy scans" in warning for warning in finding.warnings)
