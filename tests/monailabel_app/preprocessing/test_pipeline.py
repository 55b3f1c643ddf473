"""From a head to the template and back: in every orientation, recorded step by step."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import BrainNotFound, InvalidVolume
from monailabel_app.io.geometry import mm_to_voxel, reorient, resample
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor, to_native
from monailabel_app.preprocessing.template import TEMPLATE_SHAPE, Template
from monailabel_app.types import BrainMask, Volume
from tests.monailabel_app.io.heads import centre_voxel, rotation
from tests.monailabel_app.synthetic import SHAPE, person, scan, template

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights" / "template"


def rough_brain(data: np.ndarray) -> np.ndarray:
    """The brain of a T1 head by thresholding and opening: good to a few per cent, and needs no model."""
    bright = data[data > np.percentile(data, 60)]
    head = data > np.percentile(bright, 30)
    labels, _ = ndimage.label(ndimage.binary_erosion(head, iterations=3))
    core = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    brain = ndimage.binary_dilation(core, iterations=4) & ndimage.binary_dilation(head)
    return ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=3))


def versions(volume: Volume, brain: np.ndarray, lesion: np.ndarray, name: str):
    """The same head under another orientation: (volume, brain mask, lesion)."""
    arrays = (volume.data[0], brain.astype(np.float32), lesion.astype(np.float32))
    if name == "oblique":
        turned = rotation(12, 0) @ rotation(-10, 2) @ volume.affine
        changed = [resample(a, volume.affine, volume.shape, turned) for a in arrays]
        affine = turned
    elif name == "flipped":
        changed = [a[::-1] for a in arrays]
        affine = volume.affine @ np.diag([-1.0, 1, 1, 1])
        affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, 0] * (volume.shape[0] - 1)
    elif name == "as_stored":
        changed, affine = list(arrays), volume.affine
    else:
        changed = [reorient(a, volume.affine, name)[0] for a in arrays]
        affine = reorient(arrays[0], volume.affine, name)[1]
    image, mask, where = (np.ascontiguousarray(a) for a in changed)
    return Volume(image[None], affine), BrainMask(mask >= 0.5, "given"), where >= 0.5


def there_and_back(prepared, lesion: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A native mask in template space, and what comes back of it."""
    there = resample(
        lesion.astype(np.float32),
        affine,
        prepared.brain_mask.shape,
        prepared.model_affine,
        transform=prepared.native_to_template,
    )
    return there, to_native(there, prepared) >= 0.5


ORIENTATIONS = [
    "as_stored",
    "oblique",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("RAS", "LPS", "IRA", "flipped")),
]


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_lesion_of_a_real_head_comes_back_from_the_template_to_where_it_was(name, lesion_scan, lesion_mask):
    head = read_volume(lesion_scan)
    lesion = read_volume(lesion_mask).data[0] > 0
    volume, brain, lesion = versions(head, rough_brain(head.data[0]), lesion, name)
    prepared = Preprocessor(Template.load(SHIPPED)).prepare(volume, brain=brain)
    assert prepared.steps[3]["mask_dice"] > 0.9
    there, back = there_and_back(prepared, lesion, volume.affine)
    assert 2 * (back & lesion).sum() / (back.sum() + lesion.sum()) > 0.85
    assert np.abs(centre_voxel(back) - centre_voxel(lesion)).max() < 1
    # Left frontal white matter, as the sample's description says, wherever the voxel axes point.
    place = prepared.model_affine[:3, :3] @ centre_voxel(there >= 0.5) + prepared.model_affine[:3, 3]
    assert -45 < place[0] < -15
    assert prepared.image.shape == (1, *TEMPLATE_SHAPE)


@pytest.mark.parametrize("name", ["RAS", "LPS", "IRA", "SLP", "flipped", "oblique"])
def test_the_brain_in_template_space_does_not_depend_on_the_voxel_order(name):
    volume, brain, lesion = scan(person(5), lesion_mm=(-10, 14, 6))
    preprocessor = Preprocessor(template())
    plain = preprocessor.prepare(volume, brain=brain)
    other_volume, other_brain, other_lesion = versions(volume, brain.mask, lesion, name)
    other = preprocessor.prepare(other_volume, brain=other_brain)
    both = plain.brain_mask & other.brain_mask
    assert both.sum() > 0.95 * plain.brain_mask.sum()
    tolerance = 0.08 if name == "oblique" else 0.02
    assert np.abs(plain.image[0] - other.image[0])[both].mean() < tolerance
    _, back = there_and_back(other, other_lesion, other_volume.affine)
    assert np.abs(centre_voxel(back) - centre_voxel(other_lesion)).max() < 1


@pytest.fixture(scope="module")
def prepared():
    volume, brain, _ = scan(person(6), shape=(37, 43, 39))
    return Preprocessor(template()).prepare(volume, brain=brain)


def test_a_prepared_brain_is_normalised_and_zero_outside(prepared):
    assert prepared.image.shape == (1, *SHAPE)
    assert prepared.image.dtype == np.float32
    assert 0 == prepared.image.min() < prepared.image.max() <= 1
    assert (prepared.image[0][~prepared.brain_mask] == 0).all()
    assert np.percentile(prepared.image[0][prepared.brain_mask], 98) == pytest.approx(0.8, abs=0.01)


def test_every_step_is_recorded_and_the_record_is_json(prepared):
    assert [step["step"] for step in prepared.steps] == [
        "read",
        "brain_mask",
        "bias_field",
        "align",
        "resample",
        "normalize",
    ]
    assert json.loads(json.dumps(prepared.steps, allow_nan=False)) == [dict(step) for step in prepared.steps]
    read, mask, _, align, *_ = prepared.steps
    assert read["axes"] == "RAS"
    assert read["shape"] == [37, 43, 39]
    assert mask["method"] == "given"
    assert mask["volume_ml"] == pytest.approx(prepared.native_brain_mask.sum() * 8 / 1000)
    np.testing.assert_array_equal(np.array(align["native_to_template"]), prepared.native_to_template)
    assert set(prepared.seconds) == {"brain_extraction", "resampling", "alignment"}
    assert all(value >= 0 for value in prepared.seconds.values())


def test_the_way_back_is_zero_outside_the_brain_and_keeps_labels(prepared):
    values = np.ones(SHAPE, np.float32)
    native = to_native(values, prepared)
    assert native.shape == (37, 43, 39)
    assert (native[~prepared.native_brain_mask] == 0).all()
    assert native[prepared.native_brain_mask].mean() > 0.95
    labels = to_native(template().regions, prepared, order=0)
    assert set(np.unique(labels)) == {0, 81, 82}


def test_a_point_of_the_template_comes_back_to_the_voxel_that_maps_to_it(prepared):
    spot = np.zeros(SHAPE, np.float32)
    spot[10, 28, 18] = 1
    native = to_native(ndimage.gaussian_filter(spot, 1.5), prepared)
    mm = np.linalg.inv(prepared.native_to_template) @ prepared.model_affine @ (10, 28, 18, 1)
    expected = mm_to_voxel(prepared.native_affine, mm[:3])
    assert np.abs(np.unravel_index(native.argmax(), native.shape) - expected).max() <= 1


def test_the_bias_field_is_taken_out_when_asked_for():
    volume, brain, _ = scan(person(8))
    shading = np.exp(0.3 * np.linspace(-1, 1, volume.shape[1]))[None, None, :, None].astype(np.float32)
    shaded = replace(volume, data=volume.data * shading)
    preprocessor = Preprocessor(template())
    settings = PrepareSettings(bias_field=True)
    clean, left = (preprocessor.prepare(v, brain=brain) for v in (volume, shaded))
    clean_too, corrected = (preprocessor.prepare(v, settings, brain=brain) for v in (volume, shaded))
    assert corrected.steps[2] == {"step": "bias_field", "applied": True}
    assert "bias_field" in corrected.seconds

    def difference(one, other):
        both = one.brain_mask & other.brain_mask
        return np.abs(one.image[0] - other.image[0])[both].mean()

    assert difference(corrected, clean_too) < 0.7 * difference(left, clean)


def test_the_extractor_is_asked_only_without_a_mask():
    volume, brain, _ = scan(person(9))
    asked = []

    def extract(given):
        asked.append(given)
        return BrainMask(brain.mask, "network", ("cut at the border",))

    preprocessor = Preprocessor(template(), extract)
    assert preprocessor.prepare(volume, brain=brain).warnings == ()
    assert asked == []
    found = preprocessor.prepare(volume)
    assert asked == [volume]
    assert found.warnings == ("cut at the border",)
    assert found.steps[1]["method"] == "network"


def test_stages_are_told():
    volume, brain, _ = scan(person(9))
    told = []
    Preprocessor(template()).prepare(volume, brain=brain, progress=told.append)
    assert told == ["brain extraction", "alignment"]


def test_no_mask_and_no_extractor_is_refused():
    with pytest.raises(BrainNotFound, match="neither"):
        Preprocessor(template()).prepare(scan()[0])


@pytest.mark.parametrize("data", [np.zeros((2, 8, 8, 8), np.float32), np.zeros((8, 8, 8), np.float32)])
def test_more_than_one_channel_is_refused(data):
    with pytest.raises(InvalidVolume, match="one scalar"):
        Preprocessor(template()).prepare(Volume(data, np.eye(4)), brain=BrainMask(np.ones((8, 8, 8), bool), "given"))


def test_a_constant_brain_is_refused():
    volume, brain, _ = scan()
    with pytest.raises(InvalidVolume, match="constant"):
        Preprocessor(template()).prepare(replace(volume, data=np.ones_like(volume.data)), brain=brain)


def test_a_mask_of_another_grid_is_refused():
    volume, brain, _ = scan()
    with pytest.raises(InvalidVolume, match="scan's grid"):
        Preprocessor(template()).prepare(volume, brain=BrainMask(brain.mask[:, 1:], "given"))
