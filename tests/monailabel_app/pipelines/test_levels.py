"""A model of single slices analyses its levels of a volume, or one slice, calibrated on slices, and says so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml

from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score, slice_score
from monailabel_app.errors import CorruptModel, InvalidVolume, TrainingFailed
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.pipelines.calibrate import calibrate_model, calibrate_prepared
from monailabel_app.pipelines.fit import export_model, fit
from monailabel_app.pipelines.levels import levels_of_config, middle_level
from monailabel_app.pipelines.predict import PredictSettings, analyse, load_model, predict, prepare
from monailabel_app.preprocessing import slice_alignment
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import BrainMask
from monailabel_app.weights.model_folder import seal
from tests.monailabel_app.synthetic import TINY_TRAINING, person, save_template, scan, template, training_cache

from .conftest import healthy_loaders

LEVELS = (17, 21)
LESION_MM = (-10.0, 14.0, 7.0)  # level 19, the middle one


@pytest.fixture(autouse=True)
def small_brains(monkeypatch):
    """The synthetic brain is a quarter as wide as a human one."""
    monkeypatch.setattr(slice_alignment, "PLAUSIBLE_CM2", (10.0, 60.0))


def sliced(cache: TrainingCache) -> TrainingCache:
    part = slice(middle_level(LEVELS), middle_level(LEVELS) + 1)
    return replace(cache, images=cache.images[..., part], brain_masks=cache.brain_masks[..., part])


@pytest.fixture(scope="module")
def slice_model(tmp_path_factory):
    """An atlas of one level, calibrated on slices of other people."""
    base = tmp_path_factory.mktemp("slices")
    save_template(base)
    sliced(training_cache(range(20, 28))).save(base / "train.safetensors")
    held_out = sliced(training_cache(range(40, 48)))
    fit("atlas_zscore", base / "train.safetensors", base / "run", TINY_TRAINING)
    folder = export_model(
        base / "run", base / "atlas", modality="flair", training_data={}, extra={"levels": list(LEVELS)}
    )
    calibrate_prepared(folder, held_out, healthy={"data": "slices"})
    return folder


def test_the_calibration_is_that_of_slices(slice_model):
    calibration = load_model(slice_model).calibration
    assert calibration.score("atlas_z").statistics.mean.shape == (*template().shape[:2], 1)
    assert calibration.healthy["scans"] == 8


def test_a_volume_is_analysed_at_the_levels_only_and_the_result_says_so(slice_model):
    volume, brain, lesion = scan(person(7), shape=(33, 41, 37), lesion_mm=LESION_MM, contrast=0.9)
    finding = predict(volume, load_model(slice_model), PredictSettings(score="atlas_z_brighter"), brain=brain)
    analysed = finding.analysed
    outside = np.ones(volume.shape[2], bool)
    outside[analysed["native_first"] : analysed["native_last"] + 1] = False
    assert (finding.anomaly_map[..., outside] == 0).all()
    assert (finding.mask[..., outside] == 0).all()
    # Five levels of 2 mm, seen from a grid of 2 mm that is a little tilted against the template.
    assert 5 <= analysed["native_slices"] <= 8
    assert analysed["native_slices_of_brain"] == brain.mask.any(axis=(0, 1)).sum()
    assert analysed["native_axis"] == 2
    assert analysed["template_mm"] == pytest.approx([2.0, 12.0])
    assert finding.to_json()["analysed"] == analysed
    assert any(
        f"only {analysed['native_slices']} of the {analysed['native_slices_of_brain']} slices" in warning
        for warning in finding.warnings
    )
    inside = brain.mask & ~outside
    assert finding.anomaly_map[lesion & inside].mean() > 2 * finding.anomaly_map[inside & ~lesion].mean()


def test_the_axis_of_the_slices_is_found_in_any_order_of_axes(slice_model):
    volume, brain, _ = scan(person(7), shape=(33, 41, 37))
    usual = predict(volume, load_model(slice_model), brain=brain).analysed
    affine = volume.affine[:, [2, 0, 1, 3]]
    turned = replace(volume, data=volume.data.transpose(0, 3, 1, 2), affine=affine)
    analysed = predict(
        turned, load_model(slice_model), brain=BrainMask(brain.mask.transpose(2, 0, 1), "given")
    ).analysed
    assert analysed["native_axis"] == 0
    assert analysed["native_slices"] == usual["native_slices"]


def test_all_of_a_volume_is_analysed_by_other_models(make_model):
    volume, brain, _ = scan(person(7))
    finding = predict(volume, load_model(make_model("atlas_zscore").folder), brain=brain)
    assert finding.analysed is None
    assert finding.to_json()["analysed"] is None


def one_slice(contrast: float = 0.9):
    """The slice of a stripped volume that shows the lesion, as if it had come alone."""
    volume, brain, lesion = scan(person(7), shape=(33, 41, 37), lesion_mm=LESION_MM, contrast=contrast)
    at = round((LESION_MM[2] - volume.affine[2, 3]) / volume.affine[2, 2])
    affine = volume.affine.copy()
    affine[:3, 3] += at * affine[:3, 2]
    part = slice(at, at + 1)
    data = np.where(brain.mask, volume.data, 0.0)[..., part].astype(np.float32)
    return replace(volume, data=data, affine=affine), lesion[..., part]


def test_a_single_slice_is_analysed_as_a_whole(slice_model):
    volume, lesion = one_slice()
    finding = predict(volume, load_model(slice_model), PredictSettings(score="atlas_z_brighter"))
    assert finding.mask.shape == volume.shape
    assert finding.analysed is None
    assert finding.brain_mask.any()
    assert finding.anomaly_map[lesion].mean() > 3 * finding.anomaly_map[finding.brain_mask & ~lesion].mean()
    assert finding.mask[lesion].mean() > 0.5
    assert "align_slice" in [step["step"] for step in finding.steps]


def test_a_model_of_volumes_refuses_a_single_slice(make_model):
    with pytest.raises(InvalidVolume, match=r"a volume for the model tiny.*whole series.*_flair"):
        predict(one_slice()[0], load_model(make_model("atlas_zscore").folder))


def test_a_scan_without_the_levels_is_refused(slice_model):
    volume, brain, _ = scan(person(7))
    low = voxel_to_mm(volume.affine, np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1))[..., 2]
    model = load_model(slice_model)
    with pytest.raises(InvalidVolume, match="lateral ventricles"):
        prepare(volume, replaced_levels(model, (30, 31)), brain=BrainMask(brain.mask & (low < 24), "given"))


def replaced_levels(model, levels):
    model.levels = levels
    return model


def test_each_level_of_a_volume_is_treated_as_a_slice_is(slice_model):
    """The map at a level depends on that level alone: not smoothed nor eroded across."""
    volume, brain, _ = scan(person(7), shape=(33, 41, 37))
    model = load_model(slice_model)
    prepared = prepare(volume, model, brain=brain)
    changed = prepared.image.copy()
    changed[..., 0] = 0.0
    maps = []
    for image in (prepared.image, changed):
        scan_ = analyse(replace(prepared, image=image), model, PredictSettings())
        statistics = model.calibration.score("atlas_z").statistics
        options = {"score": "atlas_z", "smoothing": "strong", "erosion_mm": 2.0}
        maps.append(calibrated_map(scan_.raw("atlas_z"), prepared.brain_mask, statistics, **options))
    np.testing.assert_allclose(maps[0][..., 1:], maps[1][..., 1:], atol=1e-5)
    assert all(maps[0][..., level].any() for level in range(maps[0].shape[2]))


def test_the_score_of_several_levels_is_the_mean_of_theirs():
    values = np.zeros((20, 20, 3), np.float32)
    values[..., 0], values[..., 2] = 2.0, 4.0
    assert slice_score(values) == pytest.approx(3.0)
    assert slice_score(values[..., :1]) == scan_score(values[..., :1])
    assert slice_score(np.zeros((4, 4, 2))) == 0.0


def test_volumes_calibrate_a_slice_model_with_their_middle_level(slice_model, tmp_path):
    folder = tmp_path / "atlas"
    shutil.copytree(slice_model, folder)
    shutil.copytree(slice_model.parent / "template", tmp_path / "template")
    volumes, brains = healthy_loaders(5)
    calibration, _ = calibrate_model(folder, volumes, healthy={"data": "volumes"}, brains=brains)
    assert calibration.score("atlas_z").statistics.mean.shape[2] == 1
    predict(one_slice()[0], load_model(folder))


def test_slices_do_not_calibrate_a_model_of_volumes(make_model, tmp_path):
    with pytest.raises(TrainingFailed, match="model's grid"):
        calibrate_prepared(make_model("atlas_zscore").folder, sliced(training_cache(range(5))), healthy={})


@pytest.mark.parametrize("found", ["middle", [3], [5, 4], [0, 32], [-1, 3], 7])
def test_levels_that_are_none_are_refused(slice_model, found):
    with pytest.raises(CorruptModel, match="levels"):
        levels_of_config({"levels": found}, template(), "m")


def test_levels_come_from_the_model_folder(slice_model):
    config = yaml.safe_load((slice_model / "config.yaml").read_text())
    assert config["levels"] == list(LEVELS)
    assert load_model(slice_model).levels == LEVELS
    assert levels_of_config({}, template(), "m") is None
    seal(slice_model)
