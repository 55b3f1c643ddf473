"""Voxel-wise agreement of anomaly maps with lesion masks, pooled over any number of scans.

A data set's voxels do not fit in memory as one sorted list, so they are counted into a fixed histogram first
and every metric is read from it. The bins are the float32 numbers that share sign, exponent and the first 11
bits of
the mantissa: no range has to be known beforehand, histograms of different scans add up, and rounding a score
to its bin changes it by less than 0.05 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monailabel_app.errors import InvalidVolume

_BITS = 20  # sign, 8 bits of exponent, 11 of mantissa
_SHIFT = 32 - _BITS


class ScoreHistogram:
    """Counts of lesion voxels and of other voxels by score, from one scan or many.

    positives, negatives: (bins,) int64, lowest scores first.
    """

    def __init__(self) -> None:
        self.positives = np.zeros(2**_BITS, dtype=np.int64)
        self.negatives = np.zeros(2**_BITS, dtype=np.int64)

    @classmethod
    def of(
        cls, anomaly_map: np.ndarray, gt_mask: np.ndarray, brain_mask: np.ndarray | None = None
    ) -> ScoreHistogram:
        """The histogram of one scan."""
        histogram = cls()
        histogram.add(anomaly_map, gt_mask, brain_mask)
        return histogram

    def add(self, anomaly_map: np.ndarray, gt_mask: np.ndarray, brain_mask: np.ndarray | None = None) -> None:
        """Count one scan's voxels, those inside brain_mask if there is one.

        Raises InvalidVolume for shapes that differ or NaN among the scores counted.
        """
        shapes = [np.shape(v) for v in (anomaly_map, gt_mask, brain_mask) if v is not None]
        if len(set(shapes)) != 1:
            raise InvalidVolume(
                f"Expected anomaly map, lesion mask and brain mask of one shape, got {shapes}"
            )
        scores, truth = np.asarray(anomaly_map), np.asarray(gt_mask) > 0
        if brain_mask is not None:
            inside = np.asarray(brain_mask) > 0
            scores, truth = scores[inside], truth[inside]
        scores = scores.astype(np.float32).ravel()
        if np.isnan(scores).any():
            raise InvalidVolume("Expected an anomaly map without NaN")
        bins = _bin_of(scores)
        truth = truth.ravel()
        self.positives += np.bincount(bins[truth], minlength=2**_BITS)
        self.negatives += np.bincount(bins[~truth], minlength=2**_BITS)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The histogram of both sets of voxels together."""
        total = ScoreHistogram()
        total.positives = self.positives + other.positives
        total.negatives = self.negatives + other.negatives
        return total

    @property
    def prevalence(self) -> float:
        """Share of lesion voxels: the average precision of a score that knows nothing. NaN without voxels."""
        total = int(self.positives.sum() + self.negatives.sum())
        return float(self.positives.sum() / total) if total else float("nan")


class OracleDice(NamedTuple):
    """A Dice coefficient and the threshold (``score > threshold``) that was chosen with the labels in
    hand."""

    dice: float
    threshold: float


def average_precision(histogram: ScoreHistogram) -> float:
    """Area under the precision-recall curve as the sum of precision times gain in recall (as in
    scikit-learn).

    To be read beside the prevalence. NaN if there is no lesion voxel.
    """
    positives, true_positive, false_positive, _ = _descending(histogram)
    if not len(true_positive) or true_positive[-1] == 0:
        return float("nan")
    precision = true_positive / (true_positive + false_positive)
    return float((precision * positives).sum() / true_positive[-1])


def auroc(histogram: ScoreHistogram) -> float:
    """Probability that a lesion voxel scores above another voxel, ties counted half. NaN if either kind is
    missing."""
    positives, true_positive, false_positive, _ = _descending(histogram)
    if not len(true_positive) or true_positive[-1] == 0 or false_positive[-1] == 0:
        return float("nan")
    negatives = np.diff(false_positive, prepend=0)
    below = false_positive[-1] - false_positive + negatives / 2
    return float((positives * below).sum() / (float(true_positive[-1]) * float(false_positive[-1])))


def best_dice(histogram: ScoreHistogram) -> OracleDice:
    """The best pooled Dice over all thresholds: an upper bound that knows the labels, never a result in use.

    (NaN, NaN) if there is no lesion voxel.
    """
    _, true_positive, false_positive, bins = _descending(histogram)
    if not len(true_positive) or true_positive[-1] == 0:
        return OracleDice(float("nan"), float("nan"))
    values = 2 * true_positive / (true_positive + false_positive + true_positive[-1])
    best = int(values.argmax())
    return OracleDice(float(values[best]), _threshold_below(bins[best]))


def dice_at(histogram: ScoreHistogram, threshold: float) -> float:
    """Pooled Dice of ``score > threshold``, exact if the threshold came from best_dice, else to the bin.

    NaN if neither the truth nor the prediction holds a voxel.
    """
    above = _first_bin_above(threshold)
    true_positive = int(histogram.positives[above:].sum())
    predicted = true_positive + int(histogram.negatives[above:].sum())
    total = predicted + int(histogram.positives.sum())
    return 2 * true_positive / total if total else float("nan")


def false_positive_rate(histogram: ScoreHistogram, threshold: float) -> float:
    """Share of the voxels without lesion with ``score > threshold``, to the bin. NaN if there are none."""
    total = int(histogram.negatives.sum())
    return int(histogram.negatives[_first_bin_above(threshold) :].sum()) / total if total else float("nan")


def dice(mask: np.ndarray, gt_mask: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks of one shape. NaN if both are empty: there is nothing to agree
    on.

    Raises InvalidVolume for shapes that differ.
    """
    if np.shape(mask) != np.shape(gt_mask):
        raise InvalidVolume(f"Expected two masks of one shape, got {np.shape(mask)} and {np.shape(gt_mask)}")
    mask, gt_mask = np.asarray(mask) > 0, np.asarray(gt_mask) > 0
    total = int(mask.sum()) + int(gt_mask.sum())
    return 2 * int((mask & gt_mask).sum()) / total if total else float("nan")


def _bin_of(scores: np.ndarray) -> np.ndarray:
    """Bin of each float32 score; the order of bins is the order of scores."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0 into 0
    # The bits of positive floats count upwards; those of negative ones downwards, so they are inverted.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> _SHIFT).astype(np.int64)


def _threshold_below(bin_index: int) -> float:
    """The largest float32 below a bin."""
    ordered = np.array([int(bin_index) << _SHIFT], dtype=np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return float(np.nextafter(bits.view(np.float32), np.float32(-np.inf))[0])


def _first_bin_above(threshold: float) -> int:
    """First bin counted as above a threshold: the one that holds the next larger float32."""
    return int(_bin_of(np.nextafter(np.float32([threshold]), np.float32(np.inf)))[0])


def _descending(histogram: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Occupied bins from the highest score down: positives, cumulated positives and negatives, bin
    numbers."""
    bins = np.flatnonzero(histogram.positives + histogram.negatives)[::-1]
    positives = histogram.positives[bins]
    return positives, positives.cumsum(), histogram.negatives[bins].cumsum(), bins
