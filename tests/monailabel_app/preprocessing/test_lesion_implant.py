"""Implanted lesions: where and by how much the image changes, and shapes that are what they claim."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.preprocessing.lesion_implant import implant_lesion, random_blob

SHAPE = (16, 18, 20)
MM = (1, 1, 1)
SHAPES_FOLDER = Path(__file__).parents[4] / "shared" / "data" / "lesion_shapes"


@pytest.fixture
def image() -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.4, 0.8, SHAPE).astype(np.float32)
    values[:2] = 0  # background
    return values


@pytest.fixture
def cube() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[5:12, 6:13, 6:13] = True
    return mask


@pytest.mark.parametrize("contrast", [-0.3, 0.5])
def test_the_core_changes_by_the_contrast_and_far_voxels_not_at_all(image, cube, contrast):
    changed, truth = implant_lesion(image, cube, contrast=contrast, spacing_mm=MM)
    assert changed.dtype == np.float32
    assert truth.dtype == bool
    core = ndimage.binary_erosion(cube, iterations=3)
    np.testing.assert_allclose(changed[core] / image[core], 1 + contrast, atol=0.01)
    far = ~ndimage.binary_dilation(cube, np.ones((9, 9, 9)))
    np.testing.assert_array_equal(changed[far], image[far])


def test_without_blur_the_truth_is_the_shape_inside_the_brain(image, cube):
    cube[:6] |= cube[6:7]
    changed, truth = implant_lesion(image, cube, contrast=-0.5, spacing_mm=MM, edge_sigma_mm=0)
    np.testing.assert_array_equal(truth, cube & (image > 0))
    np.testing.assert_allclose(changed[truth], 0.5 * image[truth], rtol=1e-6)
    np.testing.assert_array_equal(changed[~truth], image[~truth])


def test_the_change_in_the_truth_is_at_least_half_the_contrast(image, cube):
    changed, truth = implant_lesion(image, cube, contrast=-0.4, spacing_mm=MM)
    ratio = changed[image > 0] / image[image > 0]
    assert ratio[truth[image > 0]].max() <= 0.8 + 1e-5
    assert ratio[~truth[image > 0]].min() > 0.8 - 1e-5


def test_zero_contrast_changes_nothing(image, cube):
    changed, truth = implant_lesion(image, cube, contrast=0, spacing_mm=MM)
    np.testing.assert_array_equal(changed, image)
    assert truth.any()


def test_a_single_voxel_lesion_does_not_vanish_in_the_blur(image):
    speck = np.zeros(SHAPE, bool)
    speck[8, 8, 8] = True
    changed, truth = implant_lesion(image, speck, contrast=-0.5, spacing_mm=MM, edge_sigma_mm=2)
    assert truth[8, 8, 8]
    assert changed[8, 8, 8] == pytest.approx(0.5 * image[8, 8, 8])


def test_the_blur_is_in_millimetres(image, cube):
    _, near = implant_lesion(image, cube, contrast=-0.5, spacing_mm=(4, 4, 4), edge_sigma_mm=4)
    _, same = implant_lesion(image, cube, contrast=-0.5, spacing_mm=MM, edge_sigma_mm=1)
    np.testing.assert_array_equal(near, same)


def test_the_input_is_not_modified(image, cube):
    before = image.copy()
    implant_lesion(image, cube, contrast=-0.5, spacing_mm=MM)
    np.testing.assert_array_equal(image, before)


def test_texture_varies_the_lesion_and_repeats_from_its_seed(image, cube):
    flat = np.full_like(image, 0.5)
    options = {"contrast": 0.2, "spacing_mm": MM, "edge_sigma_mm": 0, "texture": 0.1}
    first, truth = implant_lesion(flat, cube, generator=np.random.default_rng(1), **options)
    again, _ = implant_lesion(flat, cube, generator=np.random.default_rng(1), **options)
    np.testing.assert_array_equal(first, again)
    assert 0.02 < first[truth].std() < 0.08  # 0.1 of 0.5, over one lesion
    np.testing.assert_array_equal(first[~truth], flat[~truth])


def test_intensities_stay_non_negative(image, cube):
    changed, _ = implant_lesion(
        image, cube, contrast=-1, spacing_mm=MM, texture=0.5, generator=np.random.default_rng(0)
    )
    assert changed.min() >= 0


def test_bad_arguments_are_refused(image, cube):
    with pytest.raises(InvalidSettings, match="inside"):
        implant_lesion(image, np.zeros(SHAPE, bool), contrast=-0.3, spacing_mm=MM)
    with pytest.raises(InvalidSettings, match="contrast"):
        implant_lesion(image, cube, contrast=-1.5, spacing_mm=MM)
    with pytest.raises(InvalidSettings, match="spacing"):
        implant_lesion(image, cube, contrast=-0.5, spacing_mm=(1, 1))
    with pytest.raises(InvalidSettings, match="generator"):
        implant_lesion(image, cube, contrast=-0.5, spacing_mm=MM, texture=0.1)
    with pytest.raises(InvalidVolume, match="one shape"):
        implant_lesion(image, cube[1:], contrast=-0.5, spacing_mm=MM)


@pytest.mark.parametrize("volume_ml", [0.2, 2.0, 8.0])
@pytest.mark.parametrize("spacing", [(2, 2, 2), (1, 2, 4)])
def test_a_blob_is_one_component_of_the_volume_asked_for(volume_ml, spacing):
    for seed in range(5):
        blob = random_blob((24, 24, 24), np.random.default_rng(seed), volume_ml=volume_ml, spacing_mm=spacing)
        assert ndimage.label(blob)[1] == 1
        assert blob.sum() * np.prod(spacing) / 1000 == pytest.approx(volume_ml, rel=0.1)


def test_a_blob_stays_where_it_is_allowed():
    inside = np.zeros((20, 20, 20), bool)
    inside[3:9, 3:17, 3:17] = True
    for seed in range(5):
        blob = random_blob(
            inside.shape, np.random.default_rng(seed), volume_ml=1, spacing_mm=(2, 2, 2), inside=inside
        )
        assert blob.any()
        assert not (blob & ~inside).any()


def test_blobs_differ_between_seeds_and_repeat_with_one():
    def draw(seed: int) -> np.ndarray:
        return random_blob((16, 16, 16), np.random.default_rng(seed), volume_ml=1, spacing_mm=(2, 2, 2))

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_without_roughness_a_blob_is_a_ball():
    inside = np.zeros((21, 21, 21), bool)
    inside[10, 10, 10] = True
    centred = np.linalg.norm(np.indices(inside.shape).T - 10, axis=-1).T
    everywhere = np.ones_like(inside)
    blob = random_blob(
        everywhere.shape, FixedCentre(10, 21), volume_ml=2.0, spacing_mm=(2, 2, 2), roughness=0
    )
    assert centred[blob].max() <= centred[~blob].min() + 1e-6


class FixedCentre:
    """Stands in for a generator: the drawn voxel is the middle one."""

    def __init__(self, index: int, size: int) -> None:
        self.flat = (index * size + index) * size + index

    def integers(self, _: int) -> int:
        return self.flat


def test_an_impossible_volume_is_refused():
    for volume in (0, -1, 1e3):
        with pytest.raises(InvalidSettings, match="volume"):
            random_blob((8, 8, 8), np.random.default_rng(0), volume_ml=volume, spacing_mm=MM)


@pytest.mark.skipif(not SHAPES_FOLDER.is_dir(), reason="shared/data/lesion_shapes is not here")
def test_real_stroke_shapes_can_be_implanted():
    import nibabel

    for path in sorted(SHAPES_FOLDER.glob("*_lesion.nii.gz"))[:3]:
        loaded = nibabel.load(path)
        shape_mask = np.asarray(loaded.dataobj) > 0
        healthy = np.full(shape_mask.shape, 0.6, np.float32)
        changed, truth = implant_lesion(
            healthy, shape_mask, contrast=-0.4, spacing_mm=loaded.header.get_zooms()[:3]
        )
        overlap = (truth & shape_mask).sum() / (truth | shape_mask).sum()
        assert overlap > 0.6
        assert changed[truth].mean() < 0.48
