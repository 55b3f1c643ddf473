"""Lesions found against false alarms raised, at one threshold after the other: the points of a FROC curve.

Bunch et al., "A free response approach to the measurement and characterization of radiographic observer performance",
1978. Thresholds that mark the same share of healthy voxels make the curves of different models comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume

_CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class FrocCounts:
    """Components of one scan. detected, false_positives: (thresholds,) int64, in the order of the thresholds."""

    lesions: int
    detected: np.ndarray
    false_positives: np.ndarray


def froc_counts(
    anomaly_map: np.ndarray, gt_mask: np.ndarray, thresholds: Sequence[float], *, min_voxels: float = 0
) -> FrocCounts:
    """Count lesions found and false alarms of ``anomaly_map > threshold``, (x, y, z), for each threshold.

    Components are 26-connected. Predicted ones of fewer than ``min_voxels`` are dropped, true ones never. A lesion is
    found when what is left covers at least one of its voxels; a predicted component that touches no lesion is a false
    alarm. gt_mask of a healthy scan: empty, every component is a false alarm. The prediction is labelled once per
    threshold, the truth once.

    Raises InvalidVolume for shapes that differ, are not 3-D, or NaN in the map; InvalidSettings for NaN thresholds.
    """
    scores, truth = np.asarray(anomaly_map), np.asarray(gt_mask) > 0
    if scores.ndim != 3 or scores.shape != truth.shape or np.isnan(scores).any():
        raise InvalidVolume(
            "expected an anomaly map without NaN and a mask, (x, y, z) of one shape, "
            f"got {scores.shape} and {truth.shape}"
        )
    wanted = np.asarray(thresholds, dtype=np.float64).ravel()
    if np.isnan(wanted).any():
        raise InvalidSettings("expected thresholds without NaN")
    lesion_of, lesions = ndimage.label(truth, structure=_CONNECTIVITY_26)
    detected, false_positives = (np.zeros(len(wanted), dtype=np.int64) for _ in range(2))
    for i, threshold in enumerate(wanted):
        labels, found = ndimage.label(scores > threshold, structure=_CONNECTIVITY_26)
        if not found:
            continue
        keep = np.bincount(labels.ravel(), minlength=found + 1) >= min_voxels
        keep[0] = False
        under = labels[truth]
        touching = np.bincount(under, minlength=found + 1) > 0
        covered = np.bincount(lesion_of[truth][keep[under]], minlength=lesions + 1)[1:]
        detected[i], false_positives[i] = (covered > 0).sum(), (keep & ~touching).sum()
    return FrocCounts(lesions, detected, false_positives)


def froc_curve(
    lesions: Sequence[int] | np.ndarray, detected: np.ndarray, false_positives: np.ndarray
) -> list[tuple[float, float]]:
    """(false positives per scan, lesion recall) per threshold, fewest false positives first.

    lesions: (cases,); detected: (cases, thresholds); false_positives: (scans, thresholds), of the cases or of healthy
    scans. Empty without a lesion or a scan. Raises InvalidSettings for counts that do not fit.
    """
    total, detected, false_positives = np.sum(lesions), np.asarray(detected), np.asarray(false_positives)
    if not total or not len(false_positives):
        return []
    if detected.ndim != 2 or false_positives.ndim != 2 or detected.shape[1] != false_positives.shape[1]:
        raise InvalidSettings(
            f"expected counts as (scans, thresholds), got {detected.shape} and {false_positives.shape}"
        )
    return sorted(
        (float(false), float(recall))
        for false, recall in zip(false_positives.mean(axis=0), detected.sum(axis=0) / total, strict=True)
    )
