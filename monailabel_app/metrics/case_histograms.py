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


def _descending(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lesion voxels per bin from the highest score down, and both kinds cumulated."""
    falling = np.asarray(counts, dtype=np.float64)[..., ::-1]
    return falling[..., 0, :], falling[..., 0, :].cumsum(-1), falling[..., 1, :].cumsum(-1)
