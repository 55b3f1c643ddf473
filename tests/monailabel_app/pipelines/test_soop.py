"""The SOOP slices lie on the model grid as they lie in the head; lesions keep their place and size."""

from pathlib import Path

import numpy as np
import pytest

from monailabel_app.errors import TrainingFailed, UnreadableVolume
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.io.images import read_volume
from monailabel_app.pipelines.predict import SHIPPED_MODELS
from monailabel_app.pipelines.soop import LEVEL_MM, SPLITS, lesion_cases, levels_of, list_soop, prepare_soop
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.preprocessing.template import Template

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "soop"


@pytest.fixture(scope="module")
def template():
    return Template.load(SHIPPED_MODELS / "template")


@pytest.fixture(scope="module")
def cases(template):
    return lesion_cases(SAMPLE, template)


def test_the_splits_are_those_of_the_table():
    assert {split: len(list_soop(SAMPLE, split)) for split in SPLITS} == {
        "train_free": 3,
        "val_free": 3,
        "val_lesion": 3,
    }
    assert all(not item.lesion_mask().any() for item in list_soop(SAMPLE, "val_free"))
    assert all(item.lesion_mask().any() for item in list_soop(SAMPLE, "val_lesion"))


def test_a_picture_keeps_left_and_front():
    """Patient 728's infarct lies on the left, in front; the picture shows it at the left, above the middle."""
    item = next(i for i in list_soop(SAMPLE, "val_lesion") if i.id == "sub-728")
    volume, lesion = item.volume(), item.lesion_mask()
    centre = voxel_to_mm(volume.affine, np.argwhere(lesion).mean(axis=0))
    picture = read_volume(item.lesion, slices=True).data[0, ..., 0]  # columns, rows
    column, row = np.argwhere(picture > 0).mean(axis=0)
    assert centre[0] == pytest.approx(column - 78, abs=1e-6)
    assert centre[1] == pytest.approx(76 - row, abs=1e-6)
    assert centre[2] == 18.0


def test_slices_match_the_template_s_outline(cases):
    for case in cases:
        aligned = next(step for step in case.prepared.steps if step["step"] == "align_slice")
        assert aligned["mask_dice"] > 0.96
        assert aligned["level_mm"] == LEVEL_MM


def test_front_is_front_on_the_model_grid(cases, template):
    """The brain is narrower in front; and the ventricles, dark in both, lie where the template has them."""
    for case in cases:
        level = round((case.prepared.model_affine[2, 3] - template.affine[2, 3]) / 2)
        here = case.prepared.image[0, ..., 0]
        reference = template.mean[..., level]
        core = np.zeros_like(here, dtype=bool)
        core[24:48, 30:66] = True
        straight = np.corrcoef(here[core], reference[core])[0, 1]
        turned = np.corrcoef(here[::-1, ::-1][core], reference[core])[0, 1]
        assert straight > turned


def test_the_training_cache_has_depth_one(template):
    cache = prepare_soop(SAMPLE, "train_free", template)
    assert tuple(cache.images.shape) == (3, 72, 96, 1)
    assert cache.modality == "flair"
    assert cache.ids == ("sub-4", "sub-5", "sub-13")
    inside = cache.images[cache.brain_masks].float() / 255
    assert float(inside.median()) == pytest.approx(0.4, abs=0.02)
    assert (cache.images[~cache.brain_masks] == 0).all()


def test_ground_truth_keeps_its_area_and_its_brightness(cases):
    for case in cases:
        scale = abs(np.linalg.det(case.prepared.native_to_template[:2, :2]))
        expected = case.native_gt_mask.sum() * scale / 4
        assert case.gt_mask.sum() == pytest.approx(expected, rel=0.1)
        lesion, brain = case.gt_mask, case.prepared.brain_mask
        image = case.prepared.image[0]
        assert image[lesion].mean() > image[brain & ~lesion].mean() + 0.1
        assert not (lesion & ~brain).any()
        back = to_native(lesion.astype(np.float32), case.prepared) >= 0.5
        both = 2 * (back & case.native_gt_mask).sum() / (back.sum() + case.native_gt_mask.sum())
        assert both > 0.9


def test_a_model_of_these_slices_speaks_for_six_millimetres_up_and_down(template):
    first, last = levels_of(template)
    heights = template.affine[2, 3] + 2 * np.array([first, last])
    np.testing.assert_allclose(heights, [LEVEL_MM - 6, LEVEL_MM + 6])


def test_a_wrong_folder_and_a_damaged_picture_are_named(tmp_path, template):
    with pytest.raises(TrainingFailed, match=r"index\.csv.*soop_flair"):
        list_soop(tmp_path, "train_free")
    (tmp_path / "index.csv").write_text("subject,split\n1,train_free\n")
    with pytest.raises(TrainingFailed, match="val_free"):
        list_soop(tmp_path, "val_free")
    (tmp_path / "flair").mkdir()
    (tmp_path / "flair" / "sub-1.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableVolume, match=r"sub-1\.png"):
        prepare_soop(tmp_path, "train_free", template)
