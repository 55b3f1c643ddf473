"""Healthy T1 brains in other contrasts: the tissues swap brightness, the anatomy stays where it is."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.preprocessing.contrast_synthesis import CONTRASTS, change_contrast

SIDE = 40
CSF, CORTEX, WHITE = 51, 120, 82


@pytest.fixture
def brain():
    """Nested balls: CSF inside white matter inside cortex, with a little noise."""
    axes = np.arange(SIDE) - (SIDE - 1) / 2
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(axes, axes, axes, indexing="ij")))
    labels = np.select([radius < 6, radius < 13, radius < 18], [CSF, WHITE, CORTEX], 0).astype(np.uint8)
    image = np.select([labels == CSF, labels == WHITE, labels == CORTEX], [0.1, 0.75, 0.45], 0.0)
    image = image + 0.01 * np.random.default_rng(0).normal(size=image.shape) * (labels > 0)
    return image.astype(np.float32), labels > 0, labels


def means(made, labels):
    parts = {"csf": CSF, "grey": CORTEX, "white": WHITE}
    return {name: float(made[labels == label].mean()) for name, label in parts.items()}


@pytest.mark.parametrize(
    ("contrast", "order"),
    [
        ("t1", ["csf", "grey", "white"]),
        ("t2", ["white", "grey", "csf"]),
        ("flair", ["csf", "white", "grey"]),
    ],
)
def test_the_tissues_have_the_order_of_the_sequence(brain, contrast, order):
    for seed in range(5):
        found = means(change_contrast(*brain, contrast, np.random.default_rng(seed)), brain[2])
        assert sorted(found, key=found.get) == order


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_what_comes_out_is_a_normalised_brain(brain, contrast):
    made = change_contrast(*brain, contrast, np.random.default_rng(1))
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert (made[~brain[1]] == 0).all()
    assert np.median(made[brain[1]]) == pytest.approx(0.4, abs=0.01)


def test_a_generator_repeats_and_another_differs(brain):
    first, again, other = (change_contrast(*brain, "any", np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_bad_input_is_refused_by_name(brain):
    image, mask, labels = brain
    with pytest.raises(InvalidSettings, match="flair"):
        change_contrast(image, mask, labels, "swi", np.random.default_rng(0))
    with pytest.raises(InvalidVolume, match="one shape"):
        change_contrast(image, mask, labels[1:], "t2", np.random.default_rng(0))
    with pytest.raises(InvalidVolume, match="CSF, cortex and white matter"):
        change_contrast(image, mask, np.zeros_like(labels), "t2", np.random.default_rng(0))
