"""Lesions found against false alarms raised, at one threshold after the other: the points of a FROC curve.

Bunch et al., "A free response approach to the measurement and characterization of radiographic observer performance",
1978. What each threshold finds is counted by ``lesionwise``; thresholds that mark the same share of healthy voxels make
the curves of different models comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monailabel_app.errors import InvalidSettings


def froc_curve(
    lesions: Sequence[int] | np.ndarray, detected: np.ndarray, false_positives: np.ndarray
) -> list[tuple[float, float]]:
    """(false positives per scan, lesion recall) per threshold, in the order of the counts.

    False positives need not grow as the threshold falls: components merge into one that touches a lesion.

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
    return [
        (float(false), float(recall))
        for false, recall in zip(false_positives.mean(axis=0), detected.sum(axis=0) / total, strict=True)
    ]
