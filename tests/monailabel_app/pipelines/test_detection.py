"""The table counts the same voxels for every detector, and a case never meets statistics of its own scan."""

import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.images import write_labelmap, write_map
from monailabel_app.pipelines.baselines import IntensityAtlas
from monailabel_app.pipelines.detection import Case, Row, evaluate_detection, stored_case
from monailabel_app.pipelines.predict import load_model
from monailabel_app.registry import method_info
from monailabel_app.types import BrainMask, Volume
from tests.monailabel_app.synthetic import person, scan, training_cache


def _case(seed: int, index: int | None) -> Case:
    volume, brain, lesion = scan(person(seed), lesion_mm=(-12, 12, 6), contrast=0.6)
    return Case(volume, lesion, brain.mask, index)


@pytest.fixture
def given_masks(monkeypatch):
    """The synthetic heads have no brain a network would know: their own masks stand in for the extraction."""

    class Extractor:
        def extract(self, volume: Volume) -> BrainMask:
            return BrainMask(volume.data[0] != 300.0, "given")

    monkeypatch.setattr("monailabel_app.pipelines.predict.AnomalyModel.extractor", lambda self, device: Extractor())


def _stripped(case: Case) -> Case:
    data = np.where(case.brain_mask, case.volume.data[0], 300.0)[None].astype(np.float32)
    return Case(Volume(data, case.volume.affine), case.gt_mask, case.brain_mask, case.scan)


def test_every_detector_is_counted_on_the_same_voxels(make_model, given_masks):
    made = make_model("ddpm")
    atlas = IntensityAtlas.fit(training_cache(range(4)))
    cases = [_stripped(_case(100, 0)), _stripped(_case(101, 1))]
    table = evaluate_detection(load_model(made.folder), atlas, iter(cases), healthy=made.healthy)
    assert {row["cases"] for row in table["rows"]} == {2}
    assert len({row["prevalence"] for row in table["rows"]}) == 1
    names = [row["name"] for row in table["rows"]]
    assert len(names) == 3 * len(method_info("ddpm").scores) + 2 * 4
    atlas_rows = [row for row in table["rows"] if row["name"].startswith("atlas")]
    assert max(row["auroc"] for row in atlas_rows) > 0.9


def test_a_perfect_map_has_average_precision_one():
    case = _case(100, None)
    row = Row("perfect")
    row.add(case.gt_mask.astype(np.float32), case, threshold=0.5)
    summary = row.summary()
    assert summary["average_precision"] == pytest.approx(1)
    assert summary["dice_at_balanced"] == pytest.approx(1)


def test_a_lesion_mask_of_another_grid_is_refused(tmp_path):
    volume, _, _ = scan(person(1))
    other, brain, _ = scan(person(1), shape=(30, 44, 36))
    write_map(tmp_path / "scan.nii.gz", volume.data[0], volume)
    write_labelmap(tmp_path / "mask.nii.gz", brain.mask.astype(np.uint8), other)
    with pytest.raises(EvaluationFailed, match="on the grid of its scan"):
        stored_case(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz")


def test_nothing_to_evaluate_is_an_error(make_model):
    with pytest.raises(EvaluationFailed, match="at least one case"):
        evaluate_detection(load_model(make_model("ddpm").folder), IntensityAtlas(np.zeros(1), np.ones(1)), iter(()))
