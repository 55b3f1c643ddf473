"""Changes as small as they are said to be, repeatable from their generator."""

import numpy as np

from monailabel_app.uncertainty.jitter import Jitter, random_alignment, random_field, random_outline

CENTRE = np.array([5.0, -3.0, 8.0])
STILL = Jitter(angle_deg=0, shift_mm=0, scale=0, field=0, outline_voxels=0)


def _sphere(size: int = 24) -> np.ndarray:
    at = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij"), -1)
    return np.linalg.norm(at, axis=-1) < 8


def test_no_jitter_changes_nothing():
    generator = np.random.default_rng(0)
    np.testing.assert_allclose(random_alignment(STILL, CENTRE, generator), np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(random_field(STILL, (8, 9, 10), 2.0, generator), 1)
    np.testing.assert_array_equal(random_outline(STILL, _sphere(), generator), _sphere())


def test_points_of_a_head_move_by_millimetres():
    generator = np.random.default_rng(1)
    points = CENTRE + 70 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    moved = []
    for _ in range(200):
        matrix = random_alignment(Jitter(), CENTRE, generator)
        moved.append(np.linalg.norm(points @ matrix[:3, :3].T + matrix[:3, 3] - points, axis=1))
    assert 1 < np.mean(moved) < 5
    assert np.max(moved) < 15


def test_a_slice_stays_in_its_plane():
    matrix = random_alignment(Jitter(), CENTRE, np.random.default_rng(2), in_plane=True)
    np.testing.assert_allclose(matrix[2], [0, 0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(matrix[:2, 2], 0, atol=1e-12)
    flat = _sphere()[..., 12:13]
    sizes = {int(random_outline(Jitter(), flat, np.random.default_rng(seed)).sum()) for seed in range(20)}
    assert len(sizes) == 3
    assert min(sizes) > 0.6 * flat.sum()


def test_the_field_is_smooth_and_of_the_wanted_strength():
    fields = [random_field(Jitter(field=0.05), (40, 40, 40), 2.0, np.random.default_rng(seed)) for seed in range(30)]
    logs = np.log(np.stack(fields))
    assert 0.03 < logs.std() < 0.07
    assert np.abs(np.diff(logs, axis=1)).max() < 0.03


def test_the_same_generator_gives_the_same_jitter():
    one, two = (random_field(Jitter(), (8, 8, 8), 2.0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
