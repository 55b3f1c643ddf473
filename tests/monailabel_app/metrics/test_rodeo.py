"""RoDeO against the authors' package in 2-D, against its worked examples, and against a search over all matchings."""

import math
from itertools import permutations

import numpy as np
import pytest
import rodeo.rodeo as package
from sklearn.metrics import matthews_corrcoef

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.metrics.rodeo import (
    RodeoSums,
    component_boxes,
    image_class_weight,
    rodeo_boxes,
    rodeo_scores,
    rodeo_sums,
)


@pytest.fixture(autouse=True)
def numpy_scalars(monkeypatch):
    """The package calls ``.clip`` on what scikit-learn has returned as a plain float since 1.6."""
    monkeypatch.setattr(package, "matthews_corrcoef", lambda *labels: np.float64(matthews_corrcoef(*labels)))


def box(corner, size):
    return np.array([[corner, size]], dtype=float)


def theirs(images, classes: int):
    """The package's figures of (predicted, its classes, true, its classes) per image."""
    metric = package.RoDeO(class_names=[str(i) for i in range(max(classes, 2))])
    for predicted, names, true, true_names in images:
        rows = [
            np.column_stack([boxes[:, 0], boxes[:, 1], kinds])
            for boxes, kinds in ((predicted, names), (true, true_names))
        ]
        metric.add(rows[:1], rows[1:])
    found = metric.compute()
    return [found[f"RoDeO/{name}"] for name in ("localization", "shape_matching", "classification", "total")]


def ours(images, classes: int):
    presence = np.zeros((2, len(images), classes), dtype=bool)
    for i, (_, names, _, true_names) in enumerate(images):
        presence[0, i, names], presence[1, i, true_names] = True, True
    total = RodeoSums(classes=classes)
    for predicted, names, true, true_names in images:
        weight = image_class_weight(*presence)
        total += rodeo_sums(predicted, true, names, true_names, classes=classes, class_weight=weight)
    found = total.scores()
    return [found[name] for name in ("localisation", "shape", "classification", "total")]


def random_images(seed: int, classes: int):
    generator = np.random.default_rng(seed)

    def boxes():
        count = int(generator.integers(0, 7))
        made = np.stack([generator.uniform(0, 60, (count, 2)), generator.uniform(2, 30, (count, 2))], axis=1)
        return made, generator.integers(classes, size=count)

    return [(*boxes(), *boxes()) for _ in range(8)]


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_in_two_dimensions_it_is_the_package_of_the_authors(seed, classes):
    images = random_images(seed, classes)
    np.testing.assert_allclose(ours(images, classes), theirs(images, classes), atol=2e-5)


def test_masks_of_slices_agree_with_the_package_too():
    generator = np.random.default_rng(5)
    masks = [generator.random((40, 30)) > 0.9 for _ in range(2)]
    boxes = [component_boxes(mask, (1.0, 1.0)) for mask in masks]
    zeros = [np.zeros(len(b), dtype=int) for b in boxes]
    expected = theirs([(boxes[0], zeros[0], boxes[1], zeros[1])], 1)
    found = rodeo_boxes(*masks, (1.0, 1.0)).scores()
    # Boxes on a grid tie: of two equally good matchings either may be taken.
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-3)


@pytest.mark.parametrize("size", [(10, 20), (10, 20, 5)])
def test_the_worked_examples_of_the_paper(size):
    dimension = len(size)
    true = box([30] * dimension, size)
    exact = rodeo_sums(true, true).scores()
    assert set(exact.values()) == {1.0}
    shifted = true.copy()
    shifted[0, 0, 0] += size[0] / 2
    half = rodeo_sums(shifted, true).scores()
    assert half["localisation"] == pytest.approx(2**-0.25)
    assert round(half["localisation"], 2) == 0.84
    assert round(half["total"], 2) == 0.94
    shifted[0, 0, 0] += size[0] / 2
    assert rodeo_sums(shifted, true).scores()["localisation"] == pytest.approx(0.5)
    doubled = box(np.array([30] * dimension) - np.array(size) / 2, 2 * np.array(size))
    double = rodeo_sums(doubled, true).scores()
    assert (double["localisation"], double["shape"]) == (1, pytest.approx(2.0**-dimension))
    assert double["total"] == pytest.approx(3 / (2 + 2**dimension))  # 0.50 in the plane, 0.30 in space
    many = np.concatenate([true, *(box([200 + 50 * i] * dimension, size) for i in range(3))])
    over = rodeo_sums(many, true)
    assert (over.matched, over.over, over.missed) == (1, 3, 0)
    assert set(over.scores().values()) == {0.25}


def test_with_one_class_classification_is_the_share_of_boxes_with_a_partner():
    boxes = np.concatenate([box([0, 0, 0], [4, 4, 4]), box([50, 0, 0], [4, 4, 4])])
    found = rodeo_sums(boxes, np.concatenate([boxes + np.array([[1.0], [0.0]]), box([0, 90, 0], [3, 3, 3])]))
    assert found.scores()["classification"] == pytest.approx(2 / 3)
    assert found.to_json()["classification"] is None


def test_the_matching_is_the_best_of_all():
    """Against all permutations of five boxes in space, each pair valued by counting voxels of its boxes."""
    generator = np.random.default_rng(3)
    first, second = (
        np.stack([generator.integers(0, 8, (5, 3)), generator.integers(1, 6, (5, 3))], axis=1) for _ in range(2)
    )

    def drawn(one):
        grid = np.zeros((14, 14, 14), dtype=bool)
        grid[tuple(slice(start, start + width) for start, width in one.T)] = True
        return grid

    def value(one, other):
        a, b = drawn(one), drawn(other)
        around = np.prod([np.ptp(axis) + 1 for axis in np.nonzero(a | b)])
        return (a & b).sum() / (a | b).sum() - (around - (a | b).sum()) / around

    table = [[value(one, other) for other in second] for one in first]
    best = max(permutations(range(5)), key=lambda order: sum(table[i][j] for i, j in enumerate(order)))
    found = rodeo_sums(first, second)
    centres, wanted = (boxes[:, 0] + boxes[:, 1] / 2 for boxes in (first, second[list(best)]))
    apart = np.linalg.norm((centres - wanted) / second[list(best), 1], axis=1)
    expected = np.exp(-np.log(2) * apart**2).sum()
    assert found.localisation == pytest.approx(expected)


def test_boxes_lie_around_components_that_touch_at_a_corner_in_millimetres():
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    mask[5:8, 6, 0:2] = True
    found = component_boxes(mask, (1, 2, 0.5))
    np.testing.assert_array_equal(found, [[[1, 2, 0.5], [2, 4, 1]], [[5, 12, 0], [3, 2, 1]]])


def test_the_spacing_of_the_voxels_changes_nothing():
    generator = np.random.default_rng(0)
    masks = [generator.random((12, 10, 9)) > 0.95 for _ in range(2)]
    one, other = (rodeo_boxes(*masks, spacing) for spacing in ((1, 1, 1), (0.5, 1, 3)))
    np.testing.assert_allclose(list(one.scores().values()), list(other.scores().values()))
    assert 0 < one.scores()["total"] < 1


def test_scans_add_up_and_come_back_from_json():
    generator = np.random.default_rng(1)
    scans = [rodeo_boxes(*(generator.random((10, 10, 10)) > 0.98 for _ in range(2)), (2, 2, 2)) for _ in range(3)]
    total = sum(scans[1:], scans[0])
    assert total.scores() == pytest.approx(sum((RodeoSums.from_json(s.to_json()) for s in scans), RodeoSums()).scores())
    arrays = [[getattr(s, n) for s in scans] for n in ("matched", "over", "missed", "localisation", "shape")]
    drawn = np.array([[1, 1, 1], [2, 0, 1]]) @ np.array(arrays, dtype=float).T
    found = rodeo_scores(*drawn.T)["total"]
    assert found[0] == pytest.approx(total.scores()["total"])
    assert found[1] == pytest.approx((scans[0] + scans[0] + scans[2]).scores()["total"])


def test_nothing_found_is_zero_and_nothing_there_is_no_figure():
    empty, one = np.zeros((5, 5, 5), dtype=bool), np.zeros((5, 5, 5), dtype=bool)
    one[1:3, 1, 1] = True
    assert set(rodeo_boxes(empty, one, (1, 1, 1)).scores().values()) == {0.0}
    assert set(rodeo_boxes(one, empty, (1, 1, 1)).scores().values()) == {0.0}
    nothing = rodeo_boxes(empty, empty, (1, 1, 1))
    assert all(math.isnan(value) for value in nothing.scores().values())
    assert nothing.to_json()["total"] is None
    assert nothing + rodeo_boxes(one, one, (1, 1, 1)) == rodeo_boxes(one, one, (1, 1, 1))


def test_bad_arguments_are_refused():
    mask = np.zeros((4, 4, 4), dtype=bool)
    with pytest.raises(InvalidVolume, match="one shape"):
        rodeo_boxes(mask, mask[1:], (1, 1, 1))
    with pytest.raises(InvalidSettings, match="voxel sizes"):
        rodeo_boxes(mask, mask, (1, 1))
    with pytest.raises(InvalidSettings, match="sizes above 0"):
        rodeo_sums(box([0, 0], [1, 0]), box([0, 0], [1, 1]))
    with pytest.raises(InvalidSettings, match="equally many classes"):
        RodeoSums() + RodeoSums(classes=2)
