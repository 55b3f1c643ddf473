"""The shipped template: its grid, its mask, and the names and sides of its regions."""

from pathlib import Path

import numpy as np
import pytest

from monailabel_app.errors import CorruptModel
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.preprocessing.regions import REGION_NAMES
from monailabel_app.preprocessing.template import TEMPLATE_AFFINE, TEMPLATE_SHAPE, Template
from tests.monailabel_app.synthetic import template

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights" / "template"


@pytest.fixture(scope="module")
def shipped() -> Template:
    return Template.load(SHIPPED)


def centroids_mm(shipped):
    """(label, RAS mm) of every region with a name."""
    for label in np.unique(shipped.regions[shipped.regions > 0]):
        if int(label) in REGION_NAMES:
            yield int(label), voxel_to_mm(shipped.affine, np.argwhere(shipped.regions == label).mean(0))


def test_the_shipped_template_lies_on_the_model_grid(shipped):
    assert shipped.shape == TEMPLATE_SHAPE
    np.testing.assert_array_equal(shipped.affine, TEMPLATE_AFFINE)
    assert shipped.mean.dtype == shipped.brain_probability.dtype == np.float32
    assert 0 <= shipped.mean.min() < shipped.mean.max() <= 1
    assert 0 <= shipped.brain_probability.min() < shipped.brain_probability.max() <= 1


def test_its_brain_has_the_size_of_one_and_room_around_it(shipped):
    assert 1200 < shipped.brain_mask.sum() * 8 / 1000 < 1700
    inside = np.argwhere(shipped.brain_mask)
    assert (inside.min(0) >= 1).all()
    assert (inside.max(0) <= np.array(TEMPLATE_SHAPE) - 2).all()


def test_the_anterior_commissure_is_near_the_origin(shipped):
    middle = np.argwhere(shipped.brain_mask).mean(0)
    assert abs(voxel_to_mm(shipped.affine, middle)[0]) < 2.0
    third = np.argwhere(shipped.regions == 4).mean(0)  # the third ventricle lies just behind and below it
    np.testing.assert_allclose(voxel_to_mm(shipped.affine, third), (0, -15, -3), atol=8)


def test_every_label_has_a_name_but_the_fluid_between_the_folds(shipped):
    labelled = shipped.regions[shipped.regions > 0]
    assert len(labelled) > 0.5 * shipped.brain_mask.sum()
    assert set(labelled.tolist()) - set(REGION_NAMES) <= {1}
    assert (labelled == 1).mean() < 0.06
    assert shipped.mean[shipped.regions == 1].mean() < 0.6 * shipped.mean[shipped.regions > 1].mean()


def test_left_regions_lie_left_and_right_regions_lie_right(shipped):
    wrong = {
        REGION_NAMES[label]: round(float(centre[0]), 1)
        for label, centre in centroids_mm(shipped)
        if (REGION_NAMES[label].startswith("left") and centre[0] >= -1)
        or (REGION_NAMES[label].startswith("right") and centre[0] <= 1)
    }
    assert wrong == {}


def test_regions_without_a_side_lie_on_the_midline(shipped):
    off = {
        REGION_NAMES[label]: round(float(centre[0]), 1)
        for label, centre in centroids_mm(shipped)
        if not REGION_NAMES[label].startswith(("left", "right")) and abs(centre[0]) > 4
    }
    assert off == {}


def test_both_sides_of_a_pair_mirror_each_other(shipped):
    places = {REGION_NAMES[label]: centre for label, centre in centroids_mm(shipped)}
    pairs = [name[5:] for name in places if name.startswith("left ") and f"right {name[5:]}" in places]
    assert len(pairs) > 50
    far = {}
    for name in pairs:
        mirrored = places[f"left {name}"] * (-1, 1, 1)
        distance = np.linalg.norm(mirrored - places[f"right {name}"])
        if distance > 10:
            far[name] = round(float(distance), 1)
    assert far == {}


@pytest.mark.parametrize(
    ("first", "axis", "second"),
    [
        ("left frontal pole", 1, "left occipital pole"),
        ("left superior parietal lobule", 2, "left cerebellar cortex"),
        ("right precentral gyrus", 1, "right postcentral gyrus"),
        ("right superior temporal gyrus", 2, "right inferior temporal gyrus"),
        ("left thalamus", 1, "left calcarine cortex"),
        ("left caudate", 2, "left hippocampus"),
    ],
)
def test_names_agree_with_anatomy(shipped, first, axis, second):
    """``first`` lies in front of (axis 1) or above (axis 2) ``second``."""
    places = {REGION_NAMES[label]: centre for label, centre in centroids_mm(shipped)}
    assert places[first][axis] > places[second][axis] + 5


def test_names_are_unique():
    assert len(set(REGION_NAMES.values())) == len(REGION_NAMES)


def test_a_template_survives_its_file(tmp_path):
    made = template()
    made.save(tmp_path)
    back = Template.load(tmp_path)
    np.testing.assert_allclose(back.mean, made.mean, atol=1e-3)
    np.testing.assert_array_equal(back.brain_mask, made.brain_mask)
    np.testing.assert_array_equal(back.regions, made.regions)
    np.testing.assert_array_equal(back.affine, made.affine)


def test_a_missing_or_damaged_template_is_refused(tmp_path):
    with pytest.raises(CorruptModel, match="found none"):
        Template.load(tmp_path)
    template().save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptModel, match="complete template"):
        Template.load(tmp_path)
