"""Score histograms small enough to keep one per case, so that patients can be resampled after the measurement.

An interval of a pooled average precision needs the counts of every case again for each resample. The bins are the
floats that share the exponent and the first 8 bits of the mantissa, for scores from 1/64 to 128 healthy standard
deviations: a score moves by less than 0.4 %, and 3329 bins hold a case.
"""

from __future__ import annotations

import numpy as np

from monailabel_app.errors import InvalidVolume

_MANTISSA_BITS = 8
_SHIFT = 23 - _MANTISSA_BITS
_LOWEST, _HIGHEST = np.float32(2.0**-6), np.float32(2.0**7)
_FIRST = int(_LOWEST.view(np.uint32)) >> _SHIFT
BINS = (int(_HIGHEST.view(np.uint32)) >> _SHIFT) - _FIRST + 1  # bin 0 holds everything below the lowest
_EDGES = np.concatenate([[0], np.arange(_FIRST, _FIRST + BINS - 1, dtype=np.uint32) << _SHIFT]).astype(np.uint32)
_EDGES = _EDGES.view(np.float32)  # the lowest score of each bin; the bits of 0 are 0


def count_voxels(anomaly_map: np.ndarray, gt_mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Voxels of ``counted`` by score: (2, BINS) int32, lesion voxels first, lowest scores first.

    anomaly_map: not negative. Raises InvalidVolume for shapes that differ, NaN, or negative scores.
    """
    if not np.shape(anomaly_map) == np.shape(gt_mask) == np.shape(counted):
        raise InvalidVolume(
            "expected anomaly map, lesion mask and counted voxels of one shape, got "
            f"{np.shape(anomaly_map)}, {np.shape(gt_mask)} and {np.shape(counted)}"
        )
    scores = np.asarray(anomaly_map, dtype=np.float32)[counted]
    if not (scores >= 0).all():
        raise InvalidVolume("expected an anomaly map without NaN and without negative scores")
    bits = np.clip(scores, 0, np.nextafter(_HIGHEST, np.float32(0))).astype(np.float32).view(np.uint32)
    bins = np.where(scores < _LOWEST, 0, (bits >> _SHIFT).astype(np.int64) - _FIRST + 1)
    truth = np.asarray(gt_mask, dtype=bool)[counted]
    return np.stack([np.bincount(bins[part], minlength=BINS) for part in (truth, ~truth)]).astype(np.int32)


def average_precisions(counts: np.ndarray) -> np.ndarray:
    """Average precision of each histogram: (..., 2, BINS) counts or weighted counts -> (...); NaN without lesions."""
    positives, true_positive, false_positive = _descending(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true_positive > 0, true_positive / (true_positive + false_positive), 0.0)
        return (precision * positives).sum(-1) / true_positive[..., -1]


def best_dices(counts: np.ndarray) -> np.ndarray:
    """Best Dice over all thresholds: (..., 2, BINS) -> (...). It knows the labels: an upper bound. NaN without lesions.

    The lowest bin is never marked as a whole: it is where nothing was found.
    """
    _, true_positive, false_positive = _descending(counts)
    lesion = true_positive[..., -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 2 * true_positive[..., :-1] / (true_positive[..., :-1] + false_positive[..., :-1] + lesion)
    return np.where(lesion[..., 0] > 0, values.max(-1), np.nan)


def aurocs(counts: np.ndarray) -> np.ndarray:
    """Chance that a lesion voxel scores above another one, ties counted half: (..., 2, BINS) -> (...).

    NaN where either kind is missing. Voxels below the lowest bin tie.
    """
    positives, true_positive, false_positive = _descending(counts)
    negatives = np.asarray(counts, dtype=np.float64)[..., 1, ::-1]
    below = false_positive[..., -1:] - false_positive + negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positives * below).sum(-1) / (true_positive[..., -1] * false_positive[..., -1])


def dices_above(counts: np.ndarray) -> np.ndarray:
    """Dice of marking the bins from each one upwards: (..., 2, BINS) -> (..., BINS); NaN where nothing is there.

    Read at ``first_bin_above(threshold)`` it is the voxelwise Dice of ``score > threshold``.
    """
    _, true_positive, false_positive = _descending(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 2 * true_positive / (true_positive + false_positive + true_positive[..., -1:])
    return values[..., ::-1]


def first_bin_above(threshold: float) -> int:
    """The lowest bin that holds only scores of at least ``threshold``; the last one for thresholds beyond."""
    return int(min(np.searchsorted(_EDGES, np.float32(threshold)), BINS - 1))


def threshold_of(first_bin: int) -> float:
    """The lowest score of a bin, 0 for the first."""
    return float(_EDGES[first_bin])


def quantile_bin(counts: np.ndarray, share: float) -> int:
    """The lowest bin from which on no more than ``share`` of the voxels lie: (n, BINS) -> bin.

    Every row weighs the same. The last bin where even that holds more. Raises InvalidVolume without a voxel.
    """
    rows = np.asarray(counts, dtype=np.float64)
    rows = rows[rows.sum(axis=1) > 0]
    if not len(rows):
        raise InvalidVolume("expected healthy voxels to take a quantile of, got none")
    above = (rows / rows.sum(axis=1, keepdims=True)).mean(axis=0)[::-1].cumsum()[::-1]
    fitting = np.flatnonzero(above <= share + 1e-12)
    return int(fitting[0]) if len(fitting) else BINS - 1


def precision_recall(counts: np.ndarray, points: int = 200) -> list[tuple[float, float]]:
    """(recall, precision) from the strictest threshold down, at most ``points`` of them: (2, BINS) -> list.

    Thresholds without a marked voxel are left out; of many points those are kept that lie evenly in recall, and the
    first and last. Empty without a lesion.
    """
    _, true_positive, false_positive = _descending(counts)
    if not true_positive[-1]:
        return []
    marked = true_positive + false_positive
    used = np.flatnonzero(np.diff(marked, prepend=0) > 0)
    recall, precision = true_positive[used] / true_positive[-1], true_positive[used] / marked[used]
    if len(used) > points:
        kept = np.searchsorted(recall, np.linspace(recall[0], recall[-1], points - 1))
        used = np.unique(np.concatenate([kept, [len(recall) - 1]]))
        recall, precision = recall[used], precision[used]
    return [(float(r), float(p)) for r, p in zip(recall, precision, strict=True)]


def _descending(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lesion voxels per bin from the highest score down, and both kinds cumulated."""
    falling = np.asarray(counts, dtype=np.float64)[..., ::-1]
    return falling[..., 0, :], falling[..., 0, :].cumsum(-1), falling[..., 1, :].cumsum(-1)
