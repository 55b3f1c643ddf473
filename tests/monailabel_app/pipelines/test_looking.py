"""Looking at a finding again: own thresholds, images on the scan's grid, no network, and work that is cancelled."""

import json
import shutil

import numpy as np
import pytest

from monailabel_app.errors import Cancelled, InvalidSettings, NotAnalysed
from monailabel_app.io.geometry import resample
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.analysis_store import AnalysisStore
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.calibrate import calibrate_model
from monailabel_app.pipelines.ensemble import make_ensemble
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.preprocessing.normalize import NORMALIZATIONS, grey_values
from monailabel_app.weights.model_folder import seal
from tests.monailabel_app.pipelines.conftest import healthy_loaders
from tests.monailabel_app.synthetic import person, save_template, scan

LESION_MM = (-10.0, 14.0, 6.0)


@pytest.fixture
def patient(monkeypatch):
    """A scan with a lesion whose brain mask every model is given."""
    volume, brain, _ = scan(person(300), lesion_mm=LESION_MM, contrast=0.6, lesion_radius_mm=7)

    class Given:
        def extract(self, _):
            return brain

    monkeypatch.setattr(pipeline.AnomalyModel, "extractor", lambda self, device: Given())
    return volume


@pytest.fixture
def runs(monkeypatch):
    """One entry per run of a network."""
    found, examine = [], pipeline.examine
    monkeypatch.setattr(pipeline, "examine", lambda *args, **options: found.append(1) or examine(*args, **options))
    return found


@pytest.fixture
def model(make_model):
    return load_model(make_model("ddpm").folder)


@pytest.fixture(scope="module")
def ensemble_folder(make_model, tmp_path_factory):
    """A calibrated ensemble, read only."""
    base = tmp_path_factory.mktemp("ensemble")
    save_template(base)
    for method in ("ddpm", "atlas_zscore"):
        shutil.copytree(make_model(method).folder, base / method)
    folder = make_ensemble(base / "both", [(base / "ddpm", None), (base / "atlas_zscore", None)])
    volumes, brains = healthy_loaders()
    calibrate_model(folder, volumes, healthy={"data": "synthetic"}, brains=brains)
    return folder


@pytest.fixture
def ensemble(ensemble_folder):
    return load_model(ensemble_folder)


def test_a_threshold_of_ones_own_replaces_the_operating_points(patient, model, runs):
    cache = MapCache()
    usual = predict(patient, model, cache=cache)
    own = predict(patient, model, PredictSettings(threshold=usual.threshold * 1.5), cache=cache)
    assert len(runs) == 1
    assert own.threshold == usual.threshold * 1.5
    assert own.settings["operating_point"] == "custom"
    assert own.settings["threshold"] == own.threshold
    assert "threshold" not in usual.settings
    assert (own.mask <= usual.mask).all()
    assert own.mask.sum() < usual.mask.sum()
    told = own.to_json()["calibration"]
    assert 0 < told["healthy_rate"] < usual.calibration["healthy_rate"]
    assert told["false_volume_ml"] is None
    same = predict(patient, model, PredictSettings(threshold=usual.threshold), cache=cache)
    np.testing.assert_array_equal(same.mask, usual.mask)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), 1e9])
def test_an_impossible_threshold_is_refused(patient, model, threshold):
    with pytest.raises(InvalidSettings, match="expected threshold between 0 and"):
        predict(patient, model, PredictSettings(threshold=threshold))


def test_the_peak_of_a_lesion_stays_while_the_threshold_moves(patient, model):
    cache = MapCache()
    usual = predict(patient, model, cache=cache)
    strongest = max(usual.lesions, key=lambda lesion: lesion.peak_score)
    at = strongest.peak_voxel
    assert all(isinstance(index, int) for index in at)
    assert usual.anomaly_map[at] == pytest.approx(strongest.peak_score)
    assert usual.mask[at] == 1
    for share in (0.7, 0.9):
        moved = predict(
            patient, model, PredictSettings(threshold=strongest.peak_score * share, min_volume_ml=0), cache=cache
        )
        assert max(moved.lesions, key=lambda lesion: lesion.peak_score).peak_voxel == at
    json.dumps(usual.to_json(), allow_nan=False)


def test_images_are_made_only_when_asked_for_and_change_nothing(patient, model):
    cache = MapCache()
    plain, full = predict(patient, model, cache=cache), predict(patient, model, cache=cache, images=True)
    assert plain.reconstruction is None
    assert plain.uncertainty_map is None
    assert full.uncertainty_map is None, "uncertainty was not asked for"
    assert full.reconstructs is plain.reconstructs is True
    np.testing.assert_array_equal(plain.mask, full.mask)
    np.testing.assert_array_equal(plain.anomaly_map, full.anomaly_map)


@pytest.mark.parametrize("kind", list(NORMALIZATIONS))
def test_normalisation_is_undone_where_it_did_not_clip(kind):
    generator = np.random.default_rng(0)
    image = generator.normal(700, 90, (12, 12, 12)).astype(np.float32)
    brain = np.ones(image.shape, bool)
    made, (low, high) = NORMALIZATIONS[kind](image, brain)
    back = grey_values(made, kind, low, high)
    kept = (made > 0) & (made < 1)
    np.testing.assert_allclose(back[kept], image[kept], rtol=1e-4)


def test_the_reconstruction_lies_in_the_scans_own_grid_and_grey_values(patient, model, monkeypatch):
    """A model that returns its input must return the scan, but for what two interpolations lose."""
    from monailabel_app.methods import ddpm
    from monailabel_app.methods.output import MethodOutput

    def copied(network, config, image, brain_mask, generator, **options):
        return MethodOutput(image.clone())

    monkeypatch.setattr(ddpm, "analyse", copied)
    model.illumination_mm = 0.0
    finding = predict(patient, model, images=True, cache=MapCache())
    made, brain = finding.reconstruction, finding.brain_mask
    assert made.shape == patient.shape
    assert made.dtype == np.float32
    assert not made[~brain].any()
    inside = brain & (made > 0)
    assert inside.sum() > 0.95 * brain.sum()
    scan_values = patient.data[0][inside]
    assert np.corrcoef(made[inside], scan_values)[0, 1] > 0.9
    assert np.median(made[inside]) == pytest.approx(np.median(scan_values), rel=0.05)


def test_a_method_without_reconstruction_says_so(patient, make_model):
    finding = predict(patient, load_model(make_model("feature_autoencoder").folder), images=True, cache=MapCache())
    assert finding.reconstruction is None
    assert finding.reconstructs is False


@pytest.mark.parametrize("kind", ["model", "ensemble"])
def test_the_uncertainty_map_is_the_spread_of_the_map(patient, request, kind):
    used = request.getfixturevalue(kind)
    finding = predict(patient, used, PredictSettings(uncertainty=True), cache=MapCache(), images=True)
    spread = finding.uncertainty_map
    assert spread.shape == patient.shape
    assert spread.dtype == np.float32
    assert np.isfinite(spread).all()
    assert spread.min() >= 0
    assert not spread[~finding.brain_mask].any()
    assert 0 < spread[finding.brain_mask].mean() < finding.anomaly_map.max()


def test_without_a_run_only_what_is_at_hand_is_shown(patient, model, runs):
    cache = MapCache()
    with pytest.raises(NotAnalysed, match="run the analysis first"):
        predict(patient, model, cache=cache, run=False)
    usual = predict(patient, model, cache=cache)
    seen = predict(patient, model, cache=cache, run=False)
    np.testing.assert_array_equal(seen.mask, usual.mask)
    for other in (PredictSettings(seed=1), PredictSettings(uncertainty=True)):
        with pytest.raises(NotAnalysed):
            predict(patient, model, other, cache=cache, run=False)
    assert len(runs) == 1
    assert NotAnalysed.status == 404


def test_after_a_restart_the_finding_is_the_same_to_the_bit(patient, ensemble, tmp_path, runs):
    settings = PredictSettings(uncertainty=True)
    first = predict(
        patient, ensemble, settings, cache=MapCache(store=AnalysisStore(tmp_path / "analyses")), images=True
    )
    made = len(runs)
    fresh = MapCache(store=AnalysisStore(tmp_path / "analyses"))
    again = predict(patient, load_model(ensemble.folder), settings, cache=fresh, images=True, run=False)
    assert len(runs) == made
    for name in ("mask", "anomaly_map", "reconstruction", "uncertainty_map", "brain_mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    before, after = first.to_json(), again.to_json()
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_cancelled_at_any_moment_no_half_analysis_stays(patient, ensemble, runs):
    """Whatever call of ``progress`` raises, the next analysis gives what an undisturbed one gives."""
    wanted = predict(patient, ensemble, cache=MapCache())
    calls = []
    predict(patient, ensemble, cache=MapCache(), progress=lambda stage, share: calls.append((stage, share)))
    assert {stage for stage, _ in calls} >= {"brain extraction", "alignment", "reconstruction", "scoring", "done"}
    assert all(0 <= share <= 1 for _, share in calls)
    shares = [share for stage, share in calls if stage == "reconstruction"]
    assert shares == sorted(shares)
    for moment in sorted({*range(0, len(calls), 3), len(calls) - 1}):
        cache, left = MapCache(), [moment]

        def tell(stage, share, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Cancelled("cancelled")

        with pytest.raises(Cancelled):
            predict(patient, ensemble, cache=cache, progress=tell)
        found = predict(patient, ensemble, cache=cache)
        np.testing.assert_array_equal(found.mask, wanted.mask)
        np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_region_is_resampled_to_the_bit_as_in_the_whole(order):
    generator = np.random.default_rng(order)
    data = generator.random((20, 22, 18)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    turn = np.eye(4)
    turn[:3, :3] += generator.normal(0, 0.05, (3, 3))
    turn[:3, 3] = (1.3, -2.1, 0.7)
    target = np.diag([0.9, 1.1, 1.3, 1.0])
    shape, region = (41, 39, 29), (slice(7, 33), slice(5, 38))
    whole = resample(data, affine, shape, target, transform=turn, order=order)
    part = resample(data, affine, shape, target, transform=turn, order=order, region=region)
    np.testing.assert_array_equal(part, whole[region])


def test_a_card_written_anew_keeps_the_analyses(patient, make_model, tmp_path, runs):
    folder = shutil.copytree(make_model("ddpm").folder, tmp_path / "one" / "ddpm")
    for companion in ("template", "brain_extraction", "input_gate_t1"):
        if (make_model("ddpm").folder.parent / companion).is_dir():
            shutil.copytree(make_model("ddpm").folder.parent / companion, folder.parent / companion)
    cache, before = MapCache(), load_model(folder)
    first = predict(patient, before, cache=cache)
    (folder / "card.md").write_text("measured again")
    seal(folder)
    after = load_model(folder)
    assert after.hash != before.hash
    again = predict(patient, after, cache=cache, run=False)
    assert len(runs) == 1
    assert np.array_equal(first.anomaly_map, again.anomaly_map)
