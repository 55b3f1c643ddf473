"""The calibrated map and the scan's score; what a calibration keeps on disk."""

import json

import numpy as np
import pytest

from monailabel_app.calibration.calibrated_map import (
    SMOOTHING_MM,
    Calibration,
    ScoreCalibration,
    analysed_mask,
    calibrated_map,
    scan_score,
)
from monailabel_app.calibration.operating_points import choose_operating_points
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics
from monailabel_app.errors import CorruptModel, InvalidSettings
from monailabel_app.metrics.imagewise import rank_p_value

SHAPE = (20, 20, 20)


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return mask


def unit() -> VoxelStatistics:
    return VoxelStatistics(np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32))


def made(raw, score="l1", smoothing="none", erosion_mm=0.0):
    return calibrated_map(raw, brain(), unit(), score=score, smoothing=smoothing, erosion_mm=erosion_mm)


def healthy_maps(count, seed):
    """Maps whose mean differs from place to place and whose noise is correlated, as real residuals are."""
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    place = np.linspace(0, 3, SHAPE[0])[:, None, None]
    noise = (ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.0) for _ in range(count))
    return [(place + 4 * n).astype(np.float32) for n in noise]


def calibrate(maps, *, leave_one_out=True):
    moments = HealthyMoments(maps, [brain()] * len(maps))
    options = {"score": "l1", "smoothing": "none", "erosion_mm": 2.0}
    own = [moments.statistics(index if leave_one_out else None) for index in range(len(maps))]
    values = [
        calibrated_map(raw, brain(), s, **options)[analysed_mask(brain(), 2.0)]
        for raw, s in zip(maps, own, strict=True)
    ]
    return moments.statistics(), choose_operating_points(values)


def rate_on_new(statistics, threshold, count=60):
    inside = analysed_mask(brain(), 2.0)
    return np.mean(
        [
            (
                calibrated_map(raw, brain(), statistics, score="l1", smoothing="none", erosion_mm=2.0)[inside]
                > threshold
            ).mean()
            for raw in healthy_maps(count, seed=500)
        ]
    )


@pytest.mark.parametrize("name", ["sensitive", "balanced", "specific"])
def test_the_rate_on_unseen_healthy_scans_is_the_target(name):
    statistics, points = calibrate(healthy_maps(40, seed=1))
    rate = rate_on_new(statistics, points[name].threshold)
    assert rate == pytest.approx(points[name].target_fpr, rel=0.35)


def test_thresholds_from_scans_standardised_with_themselves_would_be_too_low():
    maps = healthy_maps(10, seed=2)
    statistics, points = calibrate(maps)
    _, optimistic = calibrate(maps, leave_one_out=False)
    target = points["balanced"].target_fpr
    assert optimistic["balanced"].threshold < points["balanced"].threshold
    honest_rate = rate_on_new(statistics, points["balanced"].threshold)
    optimistic_rate = rate_on_new(statistics, optimistic["balanced"].threshold)
    assert optimistic_rate > 1.25 * target
    assert abs(honest_rate - target) < abs(optimistic_rate - target)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_two_sided_score_finds_what_is_darker_as_well_as_what_is_brighter(sign):
    raw = np.zeros(SHAPE, np.float32)
    raw[8:12, 8:12, 8:12] = 4.0 * sign
    found = made(raw, "signed", "standard")
    assert found[9, 9, 9] > 1
    assert found.min() >= 0
    if sign < 0:
        assert made(raw, "l1", "standard")[9, 9, 9] == 0


def test_two_sided_noise_of_both_signs_cancels_before_it_is_made_absolute():
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    smooth, rough = made(noise, "signed", "strong"), made(noise, "signed", "none")
    assert smooth[brain()].mean() < 0.3 * rough[brain()].mean()


def test_the_rim_and_the_outside_are_zero():
    raw = np.full(SHAPE, 3.0, np.float32)
    eroded = made(raw, erosion_mm=2.0)
    inside = analysed_mask(brain(), 2.0)
    assert (eroded[inside] == 3.0).all()
    assert (eroded[~inside] == 0).all()
    assert inside.sum() == 14**3
    assert (made(raw)[brain()] == 3.0).all()


def test_smoothing_keeps_a_constant_and_spreads_a_peak():
    assert made(np.full(SHAPE, 2.0, np.float32), smoothing="strong")[brain()] == pytest.approx(2.0, abs=1e-5)
    peak = np.zeros(SHAPE, np.float32)
    peak[10, 10, 10] = 1
    heights = [made(peak, smoothing=name)[10, 10, 10] for name in ("none", "standard", "strong")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_an_unknown_smoothing_is_refused():
    with pytest.raises(InvalidSettings, match="standard, none, strong"):
        made(np.zeros(SHAPE, np.float32), smoothing="lots")


def test_the_scan_score_is_the_mean_of_the_highest_two_millilitres():
    values = np.zeros((20, 20, 20), np.float32)
    values.flat[:250] = 7.0
    assert scan_score(values) == pytest.approx(7.0)
    values.flat[:250] = np.linspace(1, 3, 250)
    assert scan_score(values) == pytest.approx(2.0)
    assert scan_score(values, voxel_mm3=4.0) == pytest.approx(1.0)
    assert scan_score(np.ones((2, 2, 2), np.float32)) == 1.0


def test_the_smallest_p_value_is_one_in_the_scans_and_one():
    healthy = list(range(19))
    assert rank_p_value(100.0, healthy) == pytest.approx(1 / 20)
    assert rank_p_value(-1.0, healthy) == 1.0
    assert rank_p_value(18.0, healthy) == pytest.approx(2 / 20)


def calibration() -> Calibration:
    statistics, points = calibrate(healthy_maps(10, seed=3))
    rounded = VoxelStatistics(
        statistics.mean.astype(np.float16).astype(np.float32), statistics.std.astype(np.float16).astype(np.float32)
    )
    entry = ScoreCalibration(
        rounded, {name: points for name in SMOOTHING_MM}, {name: (0.5, 1.25) for name in SMOOTHING_MM}
    )
    return Calibration({"l1": entry, "signed": entry}, 2.0, {"scans": 10})


def test_a_calibration_survives_its_files(tmp_path):
    saved = calibration()
    saved.save(tmp_path)
    back = Calibration.load(tmp_path)
    assert list(back.scores) == ["l1", "signed"]
    assert (back.erosion_mm, dict(back.healthy)) == (2.0, {"scans": 10})
    for name in saved.scores:
        np.testing.assert_array_equal(back.score(name).statistics.mean, saved.score(name).statistics.mean)
        np.testing.assert_array_equal(back.score(name).statistics.std, saved.score(name).statistics.std)
        assert back.score(name).points == saved.score(name).points
        assert back.score(name).scan_scores == saved.score(name).scan_scores


def test_the_stored_deviation_is_still_positive_when_it_was_tiny(tmp_path):
    tiny = HealthyMoments([np.full(SHAPE, 0.1, np.float32)] * 5, [brain()] * 5).statistics()
    entry = ScoreCalibration(tiny, {}, {})
    Calibration({"l1": entry}, 0.0, {}).save(tmp_path)
    assert (Calibration.load(tmp_path).score("l1").statistics.std > 0).all()


def test_an_unknown_score_lists_the_calibrated_ones():
    with pytest.raises(InvalidSettings, match="l1, signed"):
        calibration().score("psnr")


def spoil_json(folder):
    (folder / "calibration.json").write_text("{")


def spoil_entry(folder):
    record = json.loads((folder / "calibration.json").read_text())
    del record["scores"]["l1"]["points"]["standard"]["balanced"]["threshold"]
    (folder / "calibration.json").write_text(json.dumps(record))


def spoil_tensors(folder):
    (folder / "calibration.safetensors").write_bytes(b"\x00" * 50)


def spoil_missing(folder):
    (folder / "calibration.safetensors").unlink()


@pytest.mark.parametrize("spoil", [spoil_json, spoil_entry, spoil_tensors, spoil_missing])
def test_a_damaged_calibration_is_refused(tmp_path, spoil):
    calibration().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CorruptModel, match="complete calibration"):
        Calibration.load(tmp_path)


def test_a_removed_calibration_leaves_nothing(tmp_path):
    calibration().save(tmp_path)
    Calibration.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Calibration.remove(tmp_path)


WRONG = {
    "healthy that is a list": lambda record: record.update(healthy=["x"]),
    "a warning that is no text": lambda record: record["healthy"].update(warnings=[3]),
    "warnings that are no list": lambda record: record["healthy"].update(warnings=3),
    "a threshold as a text": lambda record: a_point(record).update(threshold="2.5"),
    "a threshold that is not there": lambda record: a_point(record).update(threshold=None),
    "volumes as a text": lambda record: a_point(record).update(false_ml="12"),
    "an interval of one": lambda record: a_point(record).update(interval=[0.1]),
    "scan scores as texts": lambda record: an_entry(record)["scan_scores"].update(standard=["1", "2"]),
    "tails that are a number": lambda record: an_entry(record).update(tails={"standard": 3}),
    "few quantiles": lambda record: an_entry(record).update(drift={"standard": {"quantiles": [1], "distances": [1]}}),
    "scores that are a list": lambda record: record.update(scores=[1]),
    "an endless edge": lambda record: record.update(erosion_mm=[2]),
}


def an_entry(record):
    return next(iter(record["scores"].values()))


def a_point(record):
    return next(iter(next(iter(an_entry(record)["points"].values())).values()))


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG.keys())
def test_a_calibration_with_values_of_another_kind_is_refused_when_it_is_loaded(tmp_path, spoil):
    calibration().save(tmp_path)
    record = json.loads((tmp_path / "calibration.json").read_text())
    spoil(record)
    (tmp_path / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(CorruptModel, match="complete calibration"):
        Calibration.load(tmp_path)
