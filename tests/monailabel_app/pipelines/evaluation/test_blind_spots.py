"""The blind-spot map: a balanced plan, verdicts that chance does not make, and a run that goes on."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.pipelines.evaluation import blind_spots as engine
from monailabel_app.pipelines.evaluation import selftest as command
from monailabel_app.pipelines.evaluation.blind_spot_figures import (
    aggregate,
    isotonic,
    sentences,
    smallest_contrast,
    wilson,
)
from monailabel_app.pipelines.evaluation.blind_spot_lesions import alter, judge, model_spacing
from monailabel_app.pipelines.evaluation.blind_spot_plan import (
    CONTRAST,
    CONTRASTS,
    GAP_MM,
    ISO_KINDS,
    NOTHING,
    TEXTURES,
    VOLUMES_ML,
    Anomaly,
    Placed,
    ball_radius_mm,
    design,
    place,
    region_groups,
)
from monailabel_app.pipelines.evaluation.healthy_set import HealthySet
from monailabel_app.pipelines.healthy_reference import HealthyReference
from monailabel_app.pipelines.predict import load_model
from monailabel_app.preprocessing.template import TEMPLATE_AFFINE, TEMPLATE_SHAPE
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.types import PreparedVolume
from monailabel_app.weights.model_folder import result_hash

SPACING = (2.0, 2.0, 2.0)
REGIONS = ["cortex", "white matter", "deep", "posterior fossa"]


@pytest.fixture(scope="module")
def egg():
    """A brain-sized ellipsoid on the model grid: image, mask, region labels of both halves."""
    grid = np.stack(np.meshgrid(*map(np.arange, TEMPLATE_SHAPE), indexing="ij"), -1)
    mm = grid @ TEMPLATE_AFFINE[:3, :3].T + TEMPLATE_AFFINE[:3, 3]
    mask = np.linalg.norm((mm - [0, -18, 5]) / [65, 85, 62], axis=-1) < 1
    image = np.where(mask, 0.5 + 0.1 * np.sin(mm[..., 0] / 9) * np.sin(mm[..., 1] / 11), 0).astype(np.float32)
    labels = np.where(mask, np.where(mm[..., 1] > -18, 81, 101), 0).astype(np.uint8)
    return image, mask, labels


@pytest.fixture
def prepared(egg):
    image, mask, _ = egg
    return PreparedVolume(
        image[None], mask, TEMPLATE_AFFINE, np.eye(4), TEMPLATE_AFFINE, tuple(mask.shape), mask
    )


def planned(egg, replicates=3, seed=1):
    _, mask, labels = egg
    groups = region_groups(labels, mask, 0.008)
    wanted = design(list(groups), replicates=replicates, seed=seed)
    return place(wanted, [mask, mask], groups, labels, TEMPLATE_AFFINE, seed=seed)[0], wanted


@pytest.mark.parametrize("replicates", [3, 12])
def test_the_design_gives_every_cell_the_same_number_and_spreads_textures_and_regions(replicates):
    wanted = design(REGIONS, replicates=replicates, seed=0)
    lesions = [a for a in wanted if a.kind == CONTRAST]
    cells = Counter((a.volume_ml, a.contrast) for a in lesions)
    assert set(cells) == {(v, c) for v in VOLUMES_ML for c in CONTRASTS}
    assert set(cells.values()) == {replicates}
    for field, values in (("texture", TEXTURES), ("region", REGIONS)):
        counts = Counter((getattr(a, field), np.sign(a.contrast)) for a in lesions)
        assert len(set(counts.values())) == 1
        assert len(counts) == 2 * len(values)
        per_volume = Counter((getattr(a, field), a.volume_ml) for a in lesions)
        assert len(set(per_volume.values())) == 1
    assert len(set(Counter(a.kind for a in wanted if a.kind in ISO_KINDS).values())) == 1
    assert {a.volume_ml for a in wanted if a.kind == NOTHING} == set(VOLUMES_ML)
    assert [a.number for a in wanted] == list(range(len(wanted)))


def test_the_plan_is_the_same_for_the_same_seed_and_another_for_another(egg):
    first, again, other = planned(egg)[0], planned(egg)[0], planned(egg, seed=2)[0]
    assert first == again
    assert first != other
    assert [Placed.from_json(json.loads(json.dumps(item.to_json()))) for item in first] == first


def test_every_anomaly_is_placed_once_in_its_region_and_far_from_the_others(egg):
    _image, mask, labels = egg
    placed, wanted = planned(egg)
    assert sorted(item.anomaly.number for item in placed) == [a.number for a in wanted]
    groups = region_groups(labels, mask, 0.008)
    assert all(groups[item.anomaly.region][item.centre] for item in placed)
    assert {item.scan for item in placed} == {0, 1}
    per_run = Counter(item.run for item in placed)
    assert np.mean(list(per_run.values())) > 3
    assert len(per_run) < len(placed) / 3
    for run in per_run:
        own = [item for item in placed if item.run == run]
        for i, one in enumerate(own):
            for two in own[:i]:
                apart = 2.0 * np.linalg.norm(np.subtract(one.centre, two.centre))
                radii = ball_radius_mm(one.anomaly.volume_ml) + ball_radius_mm(two.anomaly.volume_ml)
                assert apart >= radii + GAP_MM - 1e-6


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("contrast", [-0.25, 0.25])
def test_a_lesion_has_its_volume_its_contrast_and_leaves_the_rest_alone(prepared, texture, contrast):
    item = Placed(Anomaly(5, CONTRAST, 3.0, contrast, texture, "x"), 0, 0, (30, 50, 40), "")
    made, (where,) = alter(prepared, [item], np.zeros(TEMPLATE_SHAPE, bool), seed=3)
    assert where[30, 50, 40]
    assert 2.4 < where.sum() * 0.008 < 3.6
    change = (made.image[0] / np.maximum(prepared.image[0], 1e-6) - 1)[where]
    assert np.sign(change.mean()) == np.sign(contrast)
    assert 0.6 * abs(contrast) < abs(change.mean()) < 1.1 * abs(contrast)
    if texture == "heterogeneous":
        assert change.std() > 0.08
    far = np.linalg.norm(np.argwhere(made.image[0] != prepared.image[0]) - [30, 50, 40], axis=1)
    assert 2 * far.max() < 2.5 * ball_radius_mm(3.0) + 10
    again, _ = alter(prepared, [item], np.zeros(TEMPLATE_SHAPE, bool), seed=3)
    assert np.array_equal(made.image, again.image)


@pytest.mark.parametrize("kind", ISO_KINDS)
def test_iso_intense_kinds_hardly_change_the_histogram(prepared, kind):
    item = Placed(Anomaly(5, kind, 10.0, 0.0, "", "x"), 0, 0, (30, 50, 40), "")
    made, (where,) = alter(prepared, [item], np.zeros(TEMPLATE_SHAPE, bool), seed=3)
    before, after = (np.sort(image.image[0][where]) for image in (prepared, made))
    assert (made.image[0] != prepared.image[0])[where].mean() > 0.5
    assert np.abs(before - after).mean() < 0.3 * before.std()
    assert np.array_equal(before, after) == kind.startswith("shuffled")


def test_nothing_changes_nothing(prepared):
    item = Placed(Anomaly(5, NOTHING, 10.0, 0.0, "", "x"), 0, 0, (30, 50, 40), "")
    made, (where,) = alter(prepared, [item], np.zeros(TEMPLATE_SHAPE, bool), seed=3)
    assert np.array_equal(made.image, prepared.image)
    assert 9 < where.sum() * 0.008 < 11


def ball(centre, radius, shape=(40, 40, 40)):
    return np.linalg.norm(np.argwhere(np.ones(shape)) - np.array(centre), axis=1).reshape(shape) <= radius


def test_what_the_unaltered_scan_marks_already_does_not_count():
    where, clean = ball((20, 20, 20), 5), np.zeros((40, 40, 40), np.float32)
    noisy = clean.copy()
    noisy[where & (np.arange(40)[:, None, None] < 19)] = 5.0  # a minority of the lesion, marked before
    altered = np.maximum(noisy, 4.9 * ball((15, 20, 20), 2))
    (row,) = judge(noisy, altered, [where], {"balanced": 2.0}, SPACING)
    assert row["points"]["balanced"]["found"] is False
    assert 0.2 < row["points"]["balanced"]["before"] < 0.5
    seen = judge(noisy, noisy + 5.0 * where, [where], {"balanced": 2.0}, SPACING)[0]["points"]["balanced"]
    assert seen["found"] is True
    assert seen["marked"] == 1.0
    full = judge(5.0 * where, 9.0 * where, [where], {"balanced": 2.0}, SPACING)[0]["points"]["balanced"]
    assert full["found"] is None
    assert full["before"] == 1.0


def test_a_neighbours_rim_does_not_count_and_a_tenth_does():
    where, clean = ball((20, 20, 20), 5), np.zeros((40, 40, 40), np.float32)
    neighbour = np.where(ball((20, 20, 31), 9), 5.0, 0.0).astype(np.float32)
    neighbour[20, 20, 33] = 9.0
    assert (neighbour[where] > 2).mean() > 0.1
    assert judge(clean, neighbour, [where], {"p": 2.0}, SPACING)[0]["points"]["p"] == {
        "found": False,
        "marked": 0.0,
        "before": 0.0,
    }
    part = np.where(ball((20, 20, 20), 2.6), 5.0, 0.0).astype(np.float32)
    own = judge(clean, part, [where], {"p": 2.0}, SPACING)[0]["points"]["p"]
    assert own["found"]
    assert 0.1 <= own["marked"] < 0.3
    tiny = np.zeros_like(clean)
    tiny[20, 20, 20] = 5.0  # below the product's smallest component
    assert judge(clean, tiny, [where], {"p": 2.0}, SPACING)[0]["points"]["p"]["marked"] == 0.0


def rows_of(found, scans=4):
    """Judged rows of a design, each found as ``found(anomaly)`` says."""
    return [
        {
            **vars(a),
            "scan": a.number % scans,
            "points": {"balanced": {"found": found(a), "marked": 0.0, "before": 0.25}},
        }
        for a in design(REGIONS, replicates=12, seed=0)
    ]


@pytest.mark.parametrize("everything", [True, False])
def test_a_detector_that_sees_everything_or_nothing_has_recall_1_or_0(everything):
    figures = aggregate(rows_of(lambda a: everything), "balanced")
    assert set(np.ravel(figures["matrix"]["recall"])) == {float(everything)}
    assert np.array(figures["matrix"]["n"]).tolist() == [[12] * 8] * 6
    smallest = {(e["volume_ml"], e["sign"]): e["contrast"] for e in figures["smallest_contrast"]}
    assert set(smallest.values()) == ({0.06} if everything else {None})
    assert figures["chance"]["recall"] == float(everything)
    assert figures["chance"]["marked_before"] == 0.25
    said = " ".join(sentences(figures, point="balanced", strongest=0.5))
    assert ("lesions of every size tried" in said) != everything


def test_the_map_finds_the_threshold_the_sign_and_the_kinds_that_were_put_in():
    def found(a):
        if a.kind == CONTRAST:
            return a.volume_ml > 0.5 and a.contrast <= -0.12
        return a.kind == "shuffled voxels"

    figures = aggregate(rows_of(found), "balanced")
    smallest = {(e["volume_ml"], e["sign"]): e["contrast"] for e in figures["smallest_contrast"]}
    assert smallest[0.3, "darker"] is None
    assert smallest[3.0, "brighter"] is None
    assert 0.06 < smallest[3.0, "darker"] < 0.12
    said = sentences(figures, point="balanced", strongest=0.5)
    assert any("0.3 ml and smaller" in s for s in said)
    assert any("darker lesions better than brighter" in s for s in said)
    assert any(s.startswith("Misses swelling") for s in said)
    assert any("Sees tissue whose voxels" in s for s in said)


def test_places_that_cannot_be_judged_are_left_out_and_counted():
    rows = rows_of(lambda a: True)
    for row in rows[:10]:
        row["points"]["balanced"]["found"] = None
    figures = aggregate(rows, "balanced")
    assert figures["not_judged"] == 10
    counted = np.sum(figures["matrix"]["n"]) + figures["chance"]["n"] + sum(e["n"] for e in figures["by_kind"])
    assert counted == len(rows) - 10


def test_isotonic_regression_pools_violators_and_reads_off_half():
    assert isotonic(np.array([0.0, 0.6, 0.2, 1.0]), np.ones(4)) == pytest.approx([0.0, 0.4, 0.4, 1.0])
    levels = np.array([0.06, 0.12, 0.25, 0.5])
    assert smallest_contrast(np.array([0, 0, 10, 10]), np.full(4, 10), levels) == pytest.approx((0.12 * 0.25) ** 0.5)
    assert smallest_contrast(np.array([9, 9, 9, 9]), np.full(4, 10), levels) == 0.06
    assert smallest_contrast(np.array([0, 1, 2, 4]), np.full(4, 10), levels) == np.inf


def test_wilson_interval_agrees_with_the_published_example():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)
    assert wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=1e-4)
    assert wilson(0, 0) is None


@pytest.fixture(scope="module")
def tested(make_model, tmp_path_factory):
    """A tiny model's blind spots in the scans that it was calibrated on."""
    made = make_model("intensity")
    scans = [scan.prepared for scan in made.healthy]
    names = [f"s{i}" for i in range(len(scans))]
    cache = to_cache([s.image for s in scans], [s.brain_mask for s in scans], names, "t1")
    out = tmp_path_factory.mktemp("selftest")
    settings = engine.SelftestSettings(replicates=1, workers=0)
    record, job = engine.blind_spots(load_model(made.folder), HealthySet("tiny", cache), out, settings, scans=3)
    return made, cache, out, settings, record, job


def test_scans_of_the_calibration_are_read_without_their_own_statistics(tested):
    _, cache, _, _, record, job = tested
    assert record["data"]["leave_one_out"]
    assert record["data"]["calibrating_scans"] == len(cache)
    reader = engine._reader(job)
    scan = reader.scans[1]
    own, others = (reader.calibrated(scan, without) for without in (None, 1))
    assert not np.allclose(own, others)
    # The next scan shows the same person: both are left out, and it makes no difference which of them is asked for.
    reader = engine.Reader(engine._model(job), job)
    reader._patients = ["s0", "s1", "s1", *cache.patients[3:]]
    reader._reference = HealthyReference(reader._model, reader.scans, patients=reader._patients)
    both = reader.calibrated(scan, 1)
    assert not np.allclose(both, others)
    np.testing.assert_array_equal(both, reader.calibrated(scan, 2))


def test_the_record_has_what_the_page_draws_and_is_plain_json(tested):
    record = json.loads(json.dumps(tested[4]))
    figures = record["points"][record["default_point"]]
    assert np.shape(figures["matrix"]["recall"]) == np.shape(figures["matrix"]["n"])
    assert np.shape(figures["matrix"]["interval"])[2] == 2
    assert set(record["points"]) == set(record["thresholds"])
    assert record["manifest"]["anomalies"] == len(record["placed"]) == len(record["rows"])
    assert {row["scan"] for row in record["rows"]} == {0, 1, 2}
    assert record["sentences"]
    assert record["model"]["result_hash"] == result_hash(tested[0].folder)
    assert record["data"]["key"]
    judged = sum(cell["points"]["balanced"]["n"] for cell in record["cells"])
    assert judged + figures["not_judged"] == len(record["rows"])


def test_an_interrupted_run_goes_on_and_gives_the_same(tested, monkeypatch):
    made, cache, out, settings, record, job = tested
    (job.work / "rows_001.json").unlink()
    (job.work / "clean_002.safetensors").unlink()
    analysed = []
    monkeypatch.setattr(engine, "analyse", _counting(engine.analyse, analysed))
    again, _ = engine.blind_spots(load_model(made.folder), HealthySet("tiny", cache), out, settings, scans=3)
    runs = len({row["run"] for row in record["rows"] if row["scan"] == 1})
    assert len(analysed) == runs + 1
    assert again["rows"] == record["rows"]
    assert again["points"] == record["points"]


def test_another_seed_model_or_scan_is_another_run(tested):
    made, cache, _, settings, record, _ = tested
    model, few = load_model(made.folder), HealthySet("few", cache.select(range(4)))
    plans = []
    for changed, healthy in ((replace(settings, seed=21), HealthySet("tiny", cache)), (settings, few)):
        placed, homeless, regions = engine.plan(model, healthy.cache.select(range(3)), changed)
        about = engine._manifest(model, healthy, changed, model.scores[0], placed, len(homeless), regions)
        plans.append(about["key"])
    assert len({record["manifest"]["key"], *plans}) == 3


def test_the_files_hold_every_anomaly(tested, tmp_path):
    record = {**tested[4]}
    command.write(tmp_path, record)
    kept = json.loads((tmp_path / "blind_spots.json").read_text())
    assert "rows" not in kept
    assert kept["points"] == json.loads(json.dumps(record["points"]))
    lines = (tmp_path / "selftest.csv").read_text().splitlines()
    assert len(lines) == 1 + len(record["rows"])
    assert lines[0].startswith("model,number,kind,volume_ml")
    assert all(len(line.split(",")) == len(lines[0].split(",")) for line in lines)


def test_no_scans_are_an_error_that_says_so(tested):
    made, cache, out, settings, _, _ = tested
    empty = TrainingCache(cache.images[:0], cache.brain_masks[:0], (), "t1")
    with pytest.raises(EvaluationFailed, match="healthy scan"):
        engine.blind_spots(load_model(made.folder), HealthySet("none", empty), out, settings)


def _counting(function, calls):
    def counted(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return counted


def test_the_spacing_is_the_grids(prepared):
    assert model_spacing(prepared) == SPACING
