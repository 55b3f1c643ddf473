"""The held-out figure ranks what it should rank, always meets the same lesions, and compares scan by scan."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from monailabel_app.errors import EvaluationFailed
from monailabel_app.methods import ddpm
from monailabel_app.pipelines.analysis import Evidence
from monailabel_app.pipelines.held_out_quality import HeldOutQuality, QualityFigures, compare, may_replace
from monailabel_app.pipelines.quality_figures import mean_interval
from monailabel_app.preprocessing.template import Template
from tests.monailabel_app.synthetic import SHAPE, random_cache, tiny

SCANS = 6


@pytest.fixture(scope="module")
def cache():
    return random_cache(SCANS)


@pytest.fixture(scope="module")
def quality(cache):
    return HeldOutQuality(cache, seed=3)


@pytest.fixture(scope="module")
def blurred(quality):
    """The figures of a reconstruction that only blurs."""
    return quality.full_of(blurs(2.0), "signed", erosion_mm=2.0)


@pytest.fixture(scope="module")
def perfect(quality):
    """The figures of a reconstruction that knows the healthy brain."""
    return quality.full_of(knows_the_healthy_brain(quality), "signed", erosion_mm=2.0)


def knows_the_healthy_brain(quality: HeldOutQuality):
    """A reconstruction nobody can have: the brain as it was before the lesions were put in."""
    scans = [*(quality.scan(index) for index in range(len(quality))), *quality._quick_scans]

    def look(image, brain):
        shown = image > 0
        for scan in scans:
            if any(np.array_equal(image[shown], version[shown]) for version in (scan.healthy, scan.lesioned)):
                return Evidence(image, brain, scan.healthy.copy())
        raise AssertionError("an image that is in no held-out scan")

    return look


def copies_its_input(image, brain):
    return Evidence(image, brain, image.copy())


def blurs(sigma: float):
    def look(image, brain):
        return Evidence(image, brain, np.where(brain, ndimage.gaussian_filter(image, sigma), 0).astype(np.float32))

    return look


def test_perfect_knowledge_comes_near_one(quality, perfect):
    quick = quality.quick_of(knows_the_healthy_brain(quality), "signed")
    assert quick["quality"] > 0.7
    assert quick["healthy_fpr"] < 0.01
    assert perfect.mean_ap > 0.8
    assert perfect.sensitivity > 0.9


@pytest.mark.parametrize("score", ["signed", "ssim_ensemble"])
def test_a_copy_of_the_input_knows_nothing(quality, score):
    full = quality.full_of(copies_its_input, score, erosion_mm=2.0)
    lesion_share = full.prevalence
    assert 0 < lesion_share < 0.2
    assert full.pooled_ap == pytest.approx(lesion_share, abs=0.02)
    quick = quality.quick_of(copies_its_input, score)
    assert quick["quality"] < 0.3
    assert quick["healthy_fpr"] > 0.5


def test_a_better_reconstruction_has_the_better_figure(perfect, blurred):
    assert perfect.mean_ap > blurred.mean_ap
    assert compare(perfect, blurred).verdict == "better"
    assert compare(blurred, perfect).verdict == "worse"
    assert may_replace(perfect, blurred)
    assert not may_replace(blurred, perfect)


def test_a_model_is_not_distinguishable_from_itself(blurred):
    same = compare(blurred, blurred)
    assert (same.verdict, same.difference, same.interval) == ("not distinguishable", 0.0, (0.0, 0.0))
    assert may_replace(blurred, blurred)
    assert may_replace(blurred, None)


def test_a_difference_carried_by_one_scan_is_not_a_verdict(blurred):
    values = np.full(SCANS, 0.3)
    other = replace(blurred, per_scan_ap=tuple(values))
    one_scan = replace(blurred, per_scan_ap=tuple(values + np.array([0.2, 0, 0, 0, 0, -0.01])))
    assert compare(one_scan, other).verdict == "not distinguishable"
    assert compare(one_scan, other).difference > 0


def test_the_same_inputs_give_the_same_figures(cache, quality, blurred):
    again = HeldOutQuality(cache, seed=3)
    assert again.digest == quality.digest
    assert again.full_of(blurs(2.0), "signed", erosion_mm=2.0) == blurred


def test_another_seed_gives_other_lesions(cache, quality):
    other = HeldOutQuality(cache, seed=4)
    assert other.digest != quality.digest
    assert not np.array_equal(_lesions_of(other)["r0"], _lesions_of(quality)["r0"])


def test_more_scans_leave_the_lesions_of_the_others_as_they_were(quality):
    more = _lesions_of(HeldOutQuality(random_cache(SCANS + 3), seed=3))
    for name, lesions in _lesions_of(quality).items():
        np.testing.assert_array_equal(more[name], lesions)
    assert len(more) == SCANS + 3


def test_the_order_of_the_scans_does_not_matter(cache, quality):
    order = [3, 1, 5, 0, 2, 4]
    turned = replace(
        cache,
        images=cache.images[order],
        brain_masks=cache.brain_masks[order],
        ids=tuple(cache.ids[i] for i in order),
        **({"patients": tuple(cache.ids[i] for i in order)} if hasattr(cache, "patients") else {}),
    )
    assert HeldOutQuality(turned, seed=3).digest == quality.digest


def test_lesions_are_inside_the_brain_and_of_the_stated_size(quality):
    for index in range(len(quality)):
        scan = quality.scan(index)
        assert not (scan.lesions & ~scan.brain_mask).any()
        changed = np.abs(scan.lesioned - scan.healthy)
        assert (changed[scan.lesions] > 0).mean() > 0.9
        assert 0.3 <= scan.lesions.sum() * 0.008 / 1.5 <= 20
        assert scan.lesioned.min() >= 0
        assert scan.lesioned.max() <= 1


def test_one_scan_per_patient_is_measured(cache):
    patients = tuple(f"p{i % 5}" for i in range(SCANS))
    assert len(HeldOutQuality(replace(cache, patients=patients))) == 5
    with pytest.raises(EvaluationFailed, match="at least 5 held-out healthy patients"):
        HeldOutQuality(replace(cache, patients=("same",) * SCANS))


def test_a_network_is_measured_without_touching_any_random_state(quality):
    config = tiny("ddpm")
    network = ddpm.build(config).eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = quality.quick("ddpm", config, network)
    assert torch.equal(torch.rand(3), expected)
    assert first == quality.quick("ddpm", config, network)
    assert set(first) == {"quality", "healthy_fpr"}
    assert all(0 <= value <= 1 for value in first.values())


def test_pictures_are_the_same_at_every_call_and_change_with_the_network(quality):
    config = tiny("ddpm")
    network = ddpm.build(config).eval()
    sheet = quality.pictures("ddpm", config, network)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (16 + 3 * (2 * SHAPE[1] + 20), 6 * (2 * SHAPE[0] + 4) + 4, 3)
    np.testing.assert_array_equal(sheet, quality.pictures("ddpm", config, network))
    with torch.no_grad():
        for values in network.parameters():  # all: the last layer starts at zero and hides the others
            values.add_(0.3 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    assert not np.array_equal(sheet, quality.pictures("ddpm", config, network))


def test_a_model_folder_is_measured_once(quality, model_folder, tmp_path, monkeypatch):
    file = tmp_path / "kept" / "figures.json"
    told = []
    first = quality.full(model_folder, cache_file=file, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (SCANS, SCANS)
    assert 0 < first.mean_ap < 1
    assert first.model_hash
    assert first.mean_ap_interval[0] <= first.mean_ap <= first.mean_ap_interval[1]
    assert QualityFigures.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False))) == first

    def again(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(HeldOutQuality, "full_of", again)
    assert quality.full(model_folder, cache_file=file) == first
    assert not any(f'"r{index}"' in file.read_text() for index in range(SCANS)), "no id is kept"
    file.write_text("{half a file")
    with pytest.raises(AssertionError, match="measured again"):
        quality.full(model_folder, cache_file=file)


def test_figures_of_other_scans_are_not_compared(cache, blurred):
    other = replace(blurred, held_out=HeldOutQuality(cache, seed=9).digest)
    with pytest.raises(EvaluationFailed, match="same held-out scans"):
        compare(blurred, other)


def test_scans_of_another_grid_are_refused(cache, model_folder, monkeypatch):
    monkeypatch.setattr(Template, "shape", property(lambda self: (4, 4, 4)))
    with pytest.raises(EvaluationFailed, match="prepare them again"):
        HeldOutQuality(cache).full(model_folder)


def test_the_interval_is_that_of_students_t_for_few_scans():
    values = np.random.default_rng(1).normal(0.3, 0.1, 8)
    low, high = mean_interval(values)
    half = stats.t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < values.mean() < high


def _lesions_of(quality: HeldOutQuality) -> dict[str, np.ndarray]:
    return {quality._cache.ids[row]: quality.scan(i).lesions for i, row in enumerate(quality._rows)}
