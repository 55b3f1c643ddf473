"""Which few scans stand for a whole pool: outliers left out, then k-centre greedy from the densest point.

The unsupervised selection follows Meissen, Getzner et al. (arXiv 2312.03804); k-centre greedy is Sener and Savarese,
"Active Learning for Convolutional Neural Networks: A Core-Set Approach" (ICLR 2018), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monailabel_app.errors import InvalidSettings

NEIGHBOURS = 5
DROP_QUANTILE = 0.95
SUSPICIOUS_DEVIATIONS = 5.0
_TO_SD = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclass(frozen=True)
class Ranking:
    """order: (n,) indices, best first. spread: (n,) mean distance to the nearest scans, by index.

    gap: (n,) distance to the nearest scan chosen before, NaN for the first and the outliers. outlier: (n,) bool, beyond
    the 95th percentile of ``spread`` or suspicious, and ranked last. suspicious: (n,) bool, so far off that somebody
    should look.
    """

    order: np.ndarray
    spread: np.ndarray
    gap: np.ndarray
    outlier: np.ndarray
    suspicious: np.ndarray


def standardise(embeddings: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, d) float64: each feature less its median, by its median absolute deviation, over the root of d.

    Distances are thereby root mean squares of robust z-scores, and no scan that looks wrong moves the scale.
    """
    centred = np.asarray(embeddings, dtype=np.float64)
    centred = centred - np.median(centred, axis=0)
    scale = _TO_SD * np.median(np.abs(centred), axis=0)
    # A feature that is the same in most scans says nothing in common units.
    floor = 0.1 * np.median(scale) if np.median(scale) > 0 else 1.0
    return centred / np.maximum(scale, max(floor, 1e-12)) / np.sqrt(centred.shape[1])


def distances(points: np.ndarray) -> np.ndarray:
    """(n, n) Euclidean distances."""
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def neighbour_distance(matrix: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """(n,) mean distance to the ``neighbours`` nearest other points."""
    count = min(neighbours, len(matrix) - 1)
    if count < 1:
        return np.zeros(len(matrix))
    return np.sort(matrix, axis=1)[:, 1 : count + 1].mean(axis=1)


def k_centre(matrix: np.ndarray, candidates: Sequence[int], centres: Sequence[int]) -> list[tuple[int, float]]:
    """All candidates, each time the one farthest from every centre so far, with that distance.

    The first listed wins a tie. centres: at least one; they are not listed.
    """
    left = list(candidates)
    nearest = matrix[np.ix_(left, list(centres))].min(axis=1)
    chosen = []
    while left:
        position = int(np.argmax(nearest))
        index = left.pop(position)
        chosen.append((index, float(nearest[position])))
        nearest = np.minimum(np.delete(nearest, position), matrix[left, index])
    return chosen


def rank(embeddings: np.ndarray) -> Ranking:
    """Rank a pool (n, d): the densest scan, then k-centre greedy among the rest, then the outliers by distance.

    Every head of the order is the selection for that k. Deterministic. Raises InvalidSettings for an empty pool.
    """
    if len(embeddings) == 0:
        raise InvalidSettings("expected at least one scan to rank, got none; give a folder or cache with scans")
    matrix = distances(standardise(embeddings))
    spread = neighbour_distance(matrix)
    outlier = _outliers(spread)
    kept = np.flatnonzero(~outlier)
    first = int(kept[np.argmin(spread[kept])])
    gap = np.full(len(spread), np.nan)
    order = [first]
    for index, distance in k_centre(matrix, [i for i in kept if i != first], [first]):
        order.append(index)
        gap[index] = distance
    dropped = np.flatnonzero(outlier)
    order += [int(i) for i in dropped[np.argsort(spread[dropped], kind="stable")]]
    return Ranking(np.array(order), spread, gap, outlier, outlier & suspicious(spread))


def next_scan(embeddings: np.ndarray, candidates: Sequence[int], centres: Sequence[int]) -> tuple[int, float, bool]:
    """Which candidate the selection takes next when ``centres`` have been taken: index, distance, whether an outlier.

    The distance is that to the nearest centre; without a centre the densest candidate is taken, with its distance to
    the nearest scans. Outliers come when nothing else is left, the least far first. Raises InvalidSettings without a
    candidate.
    """
    if not len(candidates):
        raise InvalidSettings("expected at least one scan to choose from, got none; add scans")
    matrix = distances(standardise(embeddings))
    spread = neighbour_distance(matrix)
    outlier = _outliers(spread)
    kept = [index for index in candidates if not outlier[index]]
    if not kept:
        index = min(candidates, key=lambda i: (spread[i], i))
        return index, float(spread[index]), True
    if not len(centres):
        index = min(kept, key=lambda i: (spread[i], i))
        return index, float(spread[index]), False
    index, distance = k_centre(matrix, kept, centres)[0]
    return index, distance, False


def suspicious(spread: np.ndarray) -> np.ndarray:
    """(n,) bool: a logarithm of the distance more than 5 robust deviations above the median.

    On the logarithm, because distances are skewed to the right. Unlike a percentile this flags nobody in a clean pool.
    """
    logs = np.log(np.maximum(spread, 1e-12))
    deviation = _TO_SD * np.median(np.abs(logs - np.median(logs)))
    return logs - np.median(logs) > SUSPICIOUS_DEVIATIONS * max(deviation, 0.05)


def _outliers(spread: np.ndarray) -> np.ndarray:
    """(n,) bool; nobody among as few scans as have no neighbourhood. More than 5 % where more look wrong."""
    if len(spread) <= NEIGHBOURS:
        return np.zeros(len(spread), dtype=bool)
    return (spread > np.quantile(spread, DROP_QUANTILE)) | suspicious(spread)
