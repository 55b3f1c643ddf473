import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.core_set import distances, k_centre, next_scan, rank, standardise


def pool(count=60, features=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, features))


def test_ranking_lists_every_scan_once():
    assert sorted(rank(pool()).order) == list(range(60))


def test_first_is_the_densest_scan_that_is_no_outlier():
    ranking = rank(pool())
    kept = np.flatnonzero(~ranking.outlier)
    assert ranking.order[0] == kept[np.argmin(ranking.spread[kept])]


def test_a_scan_far_from_all_others_is_flagged_and_last():
    points = pool()
    points[17] += 12
    ranking = rank(points)
    assert ranking.order[-1] == 17
    assert np.flatnonzero(ranking.suspicious).tolist() == [17]


def test_more_wrong_scans_than_a_twentieth_are_all_set_aside():
    points = pool(count=20)
    for index in (3, 8, 15):
        points[index] += 15 * np.eye(8)[index % 8]
    ranking = rank(points)
    assert set(ranking.order[-3:]) == {3, 8, 15}
    assert np.flatnonzero(ranking.suspicious).tolist() == [3, 8, 15]


def test_nobody_in_a_clean_pool_is_flagged():
    for seed in range(5):
        assert not rank(pool(seed=seed)).suspicious.any()


def test_a_few_scans_at_the_edge_are_set_aside_without_being_flagged():
    ranking = rank(pool())
    assert ranking.outlier.sum() == 3
    assert set(ranking.order[-3:]) == set(np.flatnonzero(ranking.outlier))


def test_every_cluster_is_covered_before_one_is_taken_twice():
    centres = 20 * np.eye(4)
    points = np.concatenate([centre + np.random.default_rng(1).normal(size=(15, 4)) for centre in centres])
    order = rank(points).order
    assert {index // 15 for index in order[:4]} == {0, 1, 2, 3}


def test_greedy_takes_the_farthest_point_and_says_how_far():
    line = np.array([[0.0], [1.0], [4.0], [10.0]])
    assert k_centre(distances(line), [1, 2, 3], [0]) == [(3, 10.0), (2, 4.0), (1, 1.0)]


def test_greedy_covers_within_twice_the_optimum():
    points = pool(count=9, features=2)
    matrix = distances(points)
    chosen = [0, *(index for index, _ in k_centre(matrix, range(1, 9), [0])[:2])]
    radius = matrix[chosen].min(axis=0).max()
    best = min(
        matrix[[a, b, c]].min(axis=0).max() for a in range(9) for b in range(a + 1, 9) for c in range(b + 1, 9)
    )
    assert radius <= 2 * best


def test_units_of_a_feature_do_not_matter():
    points = pool()
    scaled = points * np.logspace(-0.8, 0.8, 8) + 5
    assert (rank(points).order == rank(scaled).order).all()


def test_a_feature_that_is_the_same_everywhere_changes_nothing_but_the_scale():
    points = pool()
    padded = np.hstack([points, np.full((60, 1), 3.0)])
    assert (rank(points).order == rank(padded).order).all()


def test_a_wrong_scan_does_not_move_the_scale_of_the_others():
    points = pool()
    wrong = points.copy()
    wrong[0] = 1e6
    before, after = standardise(points), standardise(wrong)
    assert np.abs(after[1:] - before[1:]).max() < 0.1


def test_small_pools_are_ranked_too():
    assert rank(pool(count=1)).order.tolist() == [0]
    ranking = rank(pool(count=3))
    assert sorted(ranking.order) == [0, 1, 2]
    assert not ranking.outlier.any()


def test_identical_scans_are_ranked_in_order():
    assert rank(np.ones((8, 4))).order.tolist() == list(range(8))


def test_an_empty_pool_is_refused():
    with pytest.raises(InvalidSettings, match="at least one scan"):
        rank(np.zeros((0, 4)))


def test_next_scan_follows_the_ranking():
    points = pool()
    order = rank(points).order
    chosen = []
    for _ in range(10):
        left = [i for i in range(60) if i not in chosen]
        chosen.append(next_scan(points, left, chosen)[0])
    assert chosen == order[:10].tolist()


def test_an_outlier_is_next_only_when_nothing_else_is_left():
    points = pool()
    points[17] += 12
    assert next_scan(points, [5, 17], list(range(5)))[::2] == (5, False)
    assert next_scan(points, [17], list(range(5)))[::2] == (17, True)


def test_no_candidate_is_refused():
    with pytest.raises(InvalidSettings, match="add scans"):
        next_scan(pool(), [], [0])
