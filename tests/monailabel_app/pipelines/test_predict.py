"""Prediction with a network that knows the healthy brain: what it finds, where, and how often it runs."""

import threading

import numpy as np
import pytest
import torch

from monailabel_app.errors import BrainNotFound, CorruptModel, InvalidSettings, InvalidVolume
from monailabel_app.methods import ddpm
from monailabel_app.methods.output import MethodOutput
from monailabel_app.pipelines import predict as module
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.calibrate import calibration_of
from monailabel_app.pipelines.predict import PredictSettings, find_model, list_model_folders, load_model, predict
from monailabel_app.types import BrainMask, Volume
from tests.monailabel_app.io.heads import rotation
from tests.monailabel_app.synthetic import person, scan, template

LESION_MM = (-10.0, 14.0, 6.0)


def healthy_brain(calls):
    """An ``analyse`` that answers with the template's mean, and counts in ``calls``."""
    mean = torch.from_numpy(template().mean)

    def analyse(network, config, image, brain_mask, generator, *, batch_size=16, progress=None):
        calls.append(1)
        return MethodOutput(mean.clone())

    return analyse


@pytest.fixture(scope="module")
def oracle_calibration(make_model):
    """The tiny model's healthy scans, calibrated with a network that knows the healthy brain."""
    made = make_model("ddpm")
    loaded = load_model(made.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpm, "analyse", healthy_brain([]))
        settings = PredictSettings()
        healthy = [module.analyse(s.prepared, loaded, settings) for s in made.healthy]
    return calibration_of(healthy, ["l1", "signed"], erosion_mm=2.0, healthy={"scans": len(healthy)})


@pytest.fixture
def oracle(monkeypatch):
    """``ddpm`` reconstructs the template's mean; the list counts how often."""
    calls = []
    monkeypatch.setattr(ddpm, "analyse", healthy_brain(calls))
    return calls


@pytest.fixture
def model(model_folder, oracle, oracle_calibration):
    """The tiny model with a network that knows the healthy brain, and its calibration."""
    loaded = load_model(model_folder)
    loaded.calibration = oracle_calibration
    return loaded


class Extractor:
    """Answers with the mask that belongs to the scan, and counts."""

    def __init__(self, mask):
        self.mask, self.calls = mask, 0

    def extract(self, volume):
        self.calls += 1
        return BrainMask(self.mask, "network", ("a warning of the extractor",))


def given(monkeypatch, model, brain) -> Extractor:
    extractor = Extractor(brain.mask)
    monkeypatch.setattr(model, "extractor", lambda device: extractor)
    return extractor


def overlap(found, lesion):
    return 2 * (found & lesion).sum() / (found.sum() + lesion.sum())


def centre_mm(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


def grids():
    shape = (36, 44, 36)
    plain = np.diag([2.0, 2.0, 2.0, 1.0])
    plain[:3, 3] = -(np.array(shape) - 1.0)
    flipped = plain.copy()
    flipped[:2] *= -1
    permuted = plain[:, [2, 0, 1, 3]]
    oblique = rotation(14, 0) @ rotation(-9, 2) @ plain
    fine = np.diag([1.5, 2.5, 2.0, 1.0])
    fine[:3, 3] = -fine[:3, :3] @ ((np.array((46, 34, 35)) - 1) / 2)
    return {
        "RAS": (shape, plain),
        "LPS": (shape, flipped),
        "permuted": ((36, 36, 44), permuted),
        "oblique": (shape, oblique),
        "anisotropic": ((46, 34, 35), fine),
    }


@pytest.mark.parametrize("name", grids())
def test_the_same_lesion_is_found_at_the_same_place_in_every_orientation(model, name):
    shape, affine = grids()[name]
    volume, brain, lesion = scan(
        person(300), shape=shape, affine=affine, lesion_mm=LESION_MM, contrast=0.6, lesion_radius_mm=7
    )
    finding = predict(volume, model, PredictSettings(operating_point="specific"), brain=brain)
    assert overlap(finding.mask > 0, lesion) > 0.25
    largest = finding.lesions[0]
    np.testing.assert_allclose(largest.centroid_ras_mm, centre_mm(lesion, affine), atol=3.0)
    assert largest.region == "left frontal white matter"


@pytest.mark.parametrize(("contrast", "l1", "signed"), [(0.6, True, True), (-0.5, True, True), (0.0, False, False)])
def test_bright_and_dark_lesions_stand_out_and_healthy_tissue_does_not(model, contrast, l1, signed):
    volume, brain, lesion = scan(person(301), lesion_mm=LESION_MM, contrast=contrast, lesion_radius_mm=7)
    for score, expected in (("l1", l1), ("signed", signed)):
        finding = predict(volume, model, PredictSettings(score=score, operating_point="specific"), brain=brain)
        assert bool(overlap(finding.mask > 0, lesion) > 0.4) is expected, score


def test_a_lesion_raises_the_scan_score_to_the_smallest_p_value(model):
    healthy, brain, _ = scan(person(302))
    ill, _, _ = scan(person(302), lesion_mm=LESION_MM, contrast=0.8, lesion_radius_mm=8)
    plain, found = predict(healthy, model, brain=brain), predict(ill, model, brain=brain)
    assert found.anomaly_score > 1.5 * plain.anomaly_score
    assert found.p_value == pytest.approx(1 / 11)
    assert plain.p_value > found.p_value


def test_moving_the_threshold_never_runs_network_or_brain_extraction_again(model, oracle, monkeypatch):
    volume, brain, _ = scan(person(303), lesion_mm=LESION_MM)
    extractor = given(monkeypatch, model, brain)
    cache, sizes = MapCache(), []
    for point in ("specific", "balanced", "sensitive"):
        for score, smoothing in (("l1", "none"), ("signed", "strong")):
            settings = PredictSettings(operating_point=point, score=score, smoothing=smoothing, min_volume_ml=0)
            sizes.append(int(predict(volume, model, settings, cache=cache).mask.sum()))
    assert len(oracle) == 1
    assert extractor.calls == 1
    assert sizes[0] < sizes[2] < sizes[4]

    predict(volume, model, PredictSettings(seed=1), cache=cache)
    assert len(oracle) == 2
    other = Volume(volume.data + 1, volume.affine)
    predict(other, model, cache=cache)
    assert len(oracle) == 3


def test_a_cached_prediction_equals_a_fresh_one(model, monkeypatch):
    volume, brain, _ = scan(person(304), lesion_mm=LESION_MM)
    given(monkeypatch, model, brain)
    cache = MapCache()
    first, second, fresh = (predict(volume, model, cache=c) for c in (cache, cache, None))
    for other in (second, fresh):
        np.testing.assert_array_equal(other.mask, first.mask)
        np.testing.assert_array_equal(other.anomaly_map, first.anomaly_map)
        assert other.lesions == first.lesions
    assert "reconstruction" in first.seconds
    assert "reconstruction" not in second.seconds


def test_a_prediction_with_a_given_mask_is_not_remembered(model):
    volume, brain, _ = scan(person(305))
    cache = MapCache()
    predict(volume, model, cache=cache, brain=brain)
    assert len(cache) == 0


def test_small_components_are_left_out(model):
    volume, brain, _ = scan(person(306), lesion_mm=LESION_MM)
    everything = predict(volume, model, PredictSettings(operating_point="sensitive", min_volume_ml=0), brain=brain)
    large = predict(volume, model, PredictSettings(operating_point="sensitive", min_volume_ml=0.3), brain=brain)
    assert len(large.lesions) < len(everything.lesions)
    assert all(lesion.volume_ml >= 0.3 for lesion in large.lesions)


def test_warnings_of_reader_and_extractor_reach_the_finding(model, monkeypatch):
    volume, brain, _ = scan(person(307))
    given(monkeypatch, model, brain)
    finding = predict(Volume(volume.data, volume.affine, warnings=("a warning of the reader",)), model)
    assert finding.warnings[:2] == ("a warning of the reader", "a warning of the extractor")


def test_progress_names_the_stages_in_order(model):
    volume, brain, _ = scan(person(308))
    seen = []
    predict(volume, model, brain=brain, progress=lambda stage, share: seen.append(stage))
    wanted = ["brain extraction", "alignment", "scoring", "post-processing", "done"]
    assert [stage for stage in seen if stage in wanted] == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operating_point": "lax"}, "sensitive, balanced, specific"),
        ({"smoothing": "lots"}, "standard, none, strong"),
        ({"score": "psnr"}, "l1, signed"),
        ({"min_volume_ml": -1}, "between 0 and 1000"),
        ({"min_volume_ml": float("nan")}, "between 0 and 1000"),
    ],
)
def test_settings_outside_their_values_are_refused_before_any_work(model, oracle, settings, message):
    volume, brain, _ = scan()
    with pytest.raises(InvalidSettings, match=message):
        predict(volume, model, PredictSettings(**settings), brain=brain)
    assert oracle == []


def test_a_mask_of_another_grid_is_refused(model):
    volume, brain, _ = scan()
    with pytest.raises(InvalidVolume, match="scan's grid"):
        predict(volume, model, brain=BrainMask(brain.mask[:-1], "given"))


def test_an_empty_mask_is_refused(model):
    volume, brain, _ = scan()
    with pytest.raises(BrainNotFound, match="empty"):
        predict(volume, model, brain=BrainMask(np.zeros_like(brain.mask), "given"))


def test_two_threads_give_what_one_gives(model):
    scans = [scan(person(310 + i), lesion_mm=LESION_MM)[:2] for i in range(2)]
    alone = [predict(volume, model, brain=brain).mask for volume, brain in scans]
    together = [None, None]

    def work(index):
        together[index] = predict(scans[index][0], model, brain=scans[index][1]).mask

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_missing_brain_extraction_matters_only_when_it_is_needed(model, monkeypatch, tmp_path):
    monkeypatch.setattr("monailabel_app.pipelines.find_model.SHIPPED_MODELS", tmp_path)
    volume, brain, _ = scan(person(312))
    assert predict(volume, load_model(model.folder), brain=brain).mask.shape == volume.shape
    with pytest.raises(CorruptModel, match="brain_extraction"):
        predict(volume, model)


def test_models_are_listed_once_calibrated_and_found_by_name_or_folder(model_folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").symlink_to(model_folder)
    (tmp_path / "model" / "half").mkdir()
    assert [folder.name for folder in list_model_folders(tmp_path)] == ["mine"]
    assert find_model("mine", tmp_path) == tmp_path / "model" / "mine"
    assert find_model(str(model_folder), tmp_path) == model_folder
    with pytest.raises(Exception, match=r"mine.*got 'other'"):
        find_model("other", tmp_path)
