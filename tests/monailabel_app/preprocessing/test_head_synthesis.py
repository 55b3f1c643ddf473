"""Random heads: what every drawn sample keeps, whatever its contrast."""

import numpy as np
import pytest
import torch

from monailabel_app.preprocessing.head_synthesis import (
    AIR,
    FIRST_INSIDE,
    FIRST_REGION,
    FIRST_TISSUE,
    HeadSynthesis,
    filled_brain,
    head_from_arrays,
    paint,
)

SMALL = {"shapes": ((32, 40, 32),)}
PLAIN = {"slab": 0.0, "thick": 0.0, "stripped": 0.0, "flipped": 0.0, "blobs": 0.0}


def ball(shape, centre, radius):
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) <= radius


@pytest.fixture(scope="module")
def head():
    """A ball of brain (grey, with a white core and a ventricle) in dark bone in bright skin in air."""
    shape, centre = (40, 44, 40), (20, 22, 20)
    skin, bone, brain = (ball(shape, centre, r) for r in (17, 14, 9))
    white, ventricle = ball(shape, centre, 6), ball(shape, centre, 2)
    regions = np.zeros(shape, np.uint8)
    regions[brain] = 101
    regions[white] = 83
    regions[ventricle] = 51
    image = 5.0 * np.random.default_rng(0).random(shape)
    for region, value in ((skin, 900), (bone, 60), (brain, 500), (white, 700), (ventricle, 150)):
        image[region] = value
    return head_from_arrays(image, regions)


def test_filled_brain_closes_gaps_fills_cavities_and_keeps_the_largest_part():
    regions = np.zeros((24, 24, 24), np.uint8)
    regions[4:16, 4:16, 4:16] = 7
    regions[9:11, 9:11, 9:11] = 0
    regions[4:16, 4:16, 10] = 0
    regions[21:23, 21:23, 21:23] = 7
    mask = filled_brain(regions)
    assert mask[5:15, 5:15, 5:15].all()
    assert not mask[19:].any()


def test_compartments_separate_air_surroundings_and_brain(head):
    compartments = head.compartments
    assert compartments[0, 0, 0] == AIR
    assert compartments[20, 22, 20] >= FIRST_REGION
    skin = compartments[20, 22, 20 + 16]
    assert FIRST_TISSUE <= skin < FIRST_INSIDE
    bone = compartments[20, 22, 20 + 12]
    assert AIR < bone < FIRST_TISSUE
    assert head.mask.sum() == pytest.approx(ball((40, 44, 40), (20, 22, 20), 9).sum(), rel=0.05)


def test_same_generator_state_draws_the_same_sample(head):
    synthesis = HeadSynthesis(**SMALL)
    first = synthesis.draw(head, torch.Generator().manual_seed(5))
    second = synthesis.draw(head, torch.Generator().manual_seed(5))
    other = synthesis.draw(head, torch.Generator().manual_seed(6))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_every_sample_is_finite_in_range_and_of_an_allowed_shape(head):
    synthesis = HeadSynthesis(shapes=((32, 40, 32), (24, 24, 32)))
    g = torch.Generator().manual_seed(0)
    shapes = set()
    for _ in range(30):
        image, mask = synthesis.draw(head, g)
        assert image.shape[1:] == mask.shape
        assert mask.dtype == torch.bool
        assert torch.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
        shapes.add(tuple(mask.shape))
    assert shapes == {(32, 40, 32), (24, 24, 32)}


def test_without_a_cut_the_whole_brain_stays_in_a_large_enough_grid(head):
    synthesis = HeadSynthesis(shapes=((112, 112, 112),), **PLAIN)
    g = torch.Generator().manual_seed(1)
    expected = head.mask.sum().item()
    for _ in range(3):
        _, mask = synthesis.draw(head, g)
        # enlarged or reduced by at most 1.2 * 1.1 per axis
        assert expected / 2.4 < mask.sum() < 2.4 * expected


def test_stripped_samples_are_zero_outside_the_brain_and_its_margin(head):
    synthesis = HeadSynthesis(**SMALL, **{**PLAIN, "stripped": 1.0})
    g = torch.Generator().manual_seed(2)
    for _ in range(10):
        image, mask = synthesis.draw(head, g)
        if not mask.any():
            continue
        near = torch.nn.functional.max_pool3d(mask[None, None].float(), 9, 1, 4)[0, 0] > 0
        assert image[0][~near].max() == 0


def test_a_cut_removes_image_and_mask_together(head):
    synthesis = HeadSynthesis(**SMALL, **{**PLAIN, "slab": 1.0})
    image, mask = synthesis.draw(head, torch.Generator().manual_seed(3))
    whole = HeadSynthesis(**SMALL, **PLAIN).draw(head, torch.Generator().manual_seed(3))[1]
    assert mask.sum() < whole.sum()
    assert (image[0] == 0).float().mean() > 0.2


def test_painted_t2_has_bright_fluid_and_painted_flair_has_dark_fluid(head):
    ventricle = head.compartments == head.compartments[20, 22, 20]
    white = head.compartments == head.compartments[20, 22, 25]
    g = torch.Generator().manual_seed(4)
    t2 = paint(head.compartments, head.tissue, g, "t2")
    flair = paint(head.compartments, head.tissue, g, "flair")
    assert t2[ventricle].mean() > t2[white].mean()
    assert flair[ventricle].mean() < flair[white].mean()
