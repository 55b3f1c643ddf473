"""A single slice lands on its level of the template wherever and however it was stored, and comes back exactly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from monailabel_app.errors import AlignmentFailed, BrainNotFound, InvalidVolume
from monailabel_app.io.geometry import axcodes, reorient
from monailabel_app.preprocessing import slice_alignment
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.preprocessing.slice_alignment import is_slice, level_of, prepare_slice, stripped_slice_mask
from monailabel_app.types import BrainMask, Volume
from tests.monailabel_app.io.heads import rotation
from tests.monailabel_app.synthetic import AFFINE, SHAPE, Person, person, scan, template, tissue

SHIFTS = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
LEVEL = level_of(6.0, template())


@pytest.fixture(autouse=True)
def small_brains(monkeypatch):
    """The synthetic brain is a quarter as wide as a human one."""
    monkeypatch.setattr(slice_alignment, "PLAUSIBLE_CM2", (10.0, 60.0))


def stripped(who: Person = Person(), *, spacing=1.0, shift=(0.0, 0.0), zoom=(1.0, 1.0)) -> Volume:
    """The synthetic brain's slice at 6 mm, moved and stretched in its plane."""
    shape = (round(76 / spacing), round(88 / spacing), 1)
    affine = np.diag([spacing, spacing, 4.0, 1.0])
    affine[:2, 3] = -spacing * (np.array(shape[:2]) - 1) / 2
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    points[..., :2] = (points[..., :2] - np.array(shift)) / np.array(zoom)
    points[..., 2] = 6.0
    value, brain = tissue(points, who)
    return Volume((value * brain).astype(np.float32)[None], affine, "slice")


def correlation(prepared, other) -> float:
    both = prepared.brain_mask & other.brain_mask
    return float(np.corrcoef(prepared.image[0][both], other.image[0][both])[0, 1])


def test_a_slice_lands_on_the_template_s_level():
    prepared = prepare_slice(stripped(), template(), LEVEL)
    assert prepared.image.shape == (1, *SHAPE[:2], 1)
    outline = template().brain_mask[..., LEVEL : LEVEL + 1]
    overlap = 2 * (prepared.brain_mask & outline).sum() / (prepared.brain_mask.sum() + outline.sum())
    assert overlap > 0.97
    np.testing.assert_allclose(prepared.model_affine[2, 3], AFFINE[2, 3] + 2 * LEVEL)
    # Front at the front: the ventricles lie where the template has them.
    assert np.corrcoef(
        prepared.image[0][prepared.brain_mask], template().mean[..., LEVEL : LEVEL + 1][prepared.brain_mask]
    )[0, 1] > 0.9  # fmt: skip


def test_position_and_size_in_the_plane_do_not_matter():
    usual = prepare_slice(stripped(), template(), LEVEL)
    moved = prepare_slice(stripped(shift=(4.0, -5.0), zoom=(0.88, 1.1)), template(), LEVEL)
    assert correlation(moved, usual) > 0.97


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRA", "PIR"])
def test_the_order_of_the_axes_does_not_matter(codes):
    usual = stripped()
    data, affine = reorient(usual.data, usual.affine, codes)
    prepared = prepare_slice(Volume(np.ascontiguousarray(data), affine), template(), LEVEL)
    np.testing.assert_allclose(prepared.image, prepare_slice(usual, template(), LEVEL).image, atol=1e-5)


def test_a_tilted_slice_is_laid_flat():
    usual = stripped()
    tilt = np.eye(4)
    tilt[:3, :3] = rotation(12, 0)[:3, :3]
    tilted = replace(usual, affine=tilt @ usual.affine)
    assert axcodes(tilted.affine) == "RAS"
    np.testing.assert_allclose(
        prepare_slice(tilted, template(), LEVEL).image, prepare_slice(usual, template(), LEVEL).image, atol=1e-5
    )


def test_a_map_returns_to_the_slice_where_it_belongs():
    volume = stripped(shift=(4.0, -5.0))
    prepared = prepare_slice(volume, template(), LEVEL)
    native = to_native(prepared.image[0], prepared)
    brain = prepared.native_brain_mask
    assert native.shape == volume.shape
    assert (native[~brain] == 0).all()
    fits = [np.corrcoef(np.roll(native, by, axis=(0, 1))[brain], volume.data[0][brain])[0, 1] for by in SHIFTS]
    assert int(np.argmax(fits)) == 0
    assert fits[0] > 0.85
    everywhere = to_native(np.ones(prepared.brain_mask.shape, np.float32), prepared)
    np.testing.assert_array_equal(everywhere[brain], 1.0)


def test_it_repeats_exactly():
    one, other = (prepare_slice(stripped(person(3)), template(), LEVEL) for _ in range(2))
    np.testing.assert_array_equal(one.image, other.image)


def test_a_lesion_of_a_tenth_of_the_brain_does_not_darken_the_rest():
    volume = stripped()
    brain = stripped_slice_mask(volume).mask
    usual = prepare_slice(volume, template(), LEVEL)
    data = volume.data.copy()
    patch = np.zeros(volume.shape, bool)
    patch[44:58, 42:60] = True
    data[0][patch & brain] = 1400.0
    assert 0.07 < (patch & brain).sum() / brain.sum() < 0.15
    lesion = prepare_slice(replace(volume, data=data), template(), LEVEL)
    far = usual.brain_mask.copy()
    far[SHAPE[0] // 2 - 1 :] = False  # the other half
    assert abs(np.median(lesion.image[0][far]) - np.median(usual.image[0][far])) < 0.05


def test_black_sulci_of_a_stripped_slice_belong_to_the_brain():
    volume = stripped()
    whole = stripped_slice_mask(volume).mask
    data = volume.data.copy()
    data[0, 38, 70:] = 0.0  # a fissure, open to the outside
    np.testing.assert_array_equal(stripped_slice_mask(replace(volume, data=data)).mask, whole)


def head_slice() -> Volume:
    volume, _, _ = scan(person(2))
    middle = volume.shape[2] // 2
    return replace(volume, data=volume.data[..., middle : middle + 1])


def ringed() -> Volume:
    """A brain inside a dark skull and a bright scalp, on an empty background."""
    volume = stripped(zoom=(0.8, 0.8))
    data = volume.data[0, ..., 0].copy()
    brain = data != 0
    distance = ndimage.distance_transform_edt(~brain)
    data[(distance > 0) & (distance <= 6)] = 20.0
    data[(distance > 6) & (distance <= 9)] = 600.0
    return replace(volume, data=data[None, ..., None])


def test_slices_that_are_not_stripped_are_refused_with_what_to_do():
    for volume in (head_slice(), ringed()):
        with pytest.raises(BrainNotFound, match=r"skull-stripped slice.*whole head volume"):
            prepare_slice(volume, template(), LEVEL)


def test_a_given_mask_is_taken_instead():
    volume = stripped()
    brain = stripped_slice_mask(volume)
    head = replace(volume, data=np.where(brain.mask, volume.data[0], 300.0)[None].astype(np.float32))
    prepared = prepare_slice(head, template(), LEVEL, brain=BrainMask(brain.mask, "given"))
    assert correlation(prepared, prepare_slice(volume, template(), LEVEL)) > 0.97
    with pytest.raises(InvalidVolume, match="slice's own"):
        prepare_slice(head, template(), LEVEL, brain=BrainMask(brain.mask[1:], "given"))


def test_what_is_no_axial_slice_is_refused():
    volume = stripped()
    data, affine = reorient(volume.data, volume.affine, "SRA")
    coronal = Volume(data, affine[:, [1, 0, 2, 3]] @ np.eye(4))
    assert not is_slice(scan()[0])
    with pytest.raises(InvalidVolume, match="axial slice"):
        prepare_slice(coronal, template(), LEVEL)
    with pytest.raises(InvalidVolume, match="single slice"):
        prepare_slice(scan()[0], template(), LEVEL)


def test_an_outline_that_is_no_brain_s_is_refused():
    volume = stripped()
    data = volume.data.copy()
    data[0, :30] = 0.0
    data[0, :, :12] = 0.0
    data[0, 30:40, 40:] = 0.0
    with pytest.raises(AlignmentFailed, match="Dice"):
        prepare_slice(replace(volume, data=data), template(), LEVEL)


def test_an_implausible_size_is_refused():
    with pytest.raises(BrainNotFound, match="square cm"):
        prepare_slice(replace(stripped(), affine=np.diag([0.2, 0.2, 4.0, 1.0])), template(), LEVEL)
