"""Lesions found and false alarms raised, counted as 26-connected components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.types import CONNECTIVITY_26


@dataclass(frozen=True)
class LesionCounts:
    """Component counts of one scan, or of several added up."""

    lesions: int
    detected: int
    predicted: int
    false_positives: int
    scans: int = 1

    @property
    def recall(self) -> float:
        """Share of true lesions detected; NaN without lesions."""
        return self.detected / self.lesions if self.lesions else float("nan")

    @property
    def false_positives_per_scan(self) -> float:
        """Predicted components that touch no lesion, per scan; NaN without scans."""
        return self.false_positives / self.scans if self.scans else float("nan")

    def __add__(self, other: LesionCounts) -> LesionCounts:
        return LesionCounts(
            lesions=self.lesions + other.lesions,
            detected=self.detected + other.detected,
            predicted=self.predicted + other.predicted,
            false_positives=self.false_positives + other.false_positives,
            scans=self.scans + other.scans,
        )


def count_lesions(mask: np.ndarray, gt_mask: np.ndarray, *, min_overlap: float = 0.0) -> LesionCounts:
    """Compare a predicted (x, y, z) mask with the true one, component by component.

    A true lesion is detected if the prediction covers at least min_overlap of its voxels, and at least one. A
    predicted component is a false positive if it shares no voxel with any lesion; one that overlaps a lesion
    too little to detect it is neither. Components much larger than their lesion are not punished here: read
    the Dice beside it.

    Raises InvalidSettings unless 0 <= min_overlap <= 1, InvalidVolume for shapes that differ or are not 3-D.
    """
    if not 0 <= min_overlap <= 1:
        raise InvalidSettings(f"Expected min_overlap between 0 and 1, got {min_overlap}")
    mask, gt_mask = np.asarray(mask) > 0, np.asarray(gt_mask) > 0
    if mask.ndim != 3 or mask.shape != gt_mask.shape:
        raise InvalidVolume(
            f"Expected two (x, y, z) masks of one shape, got {mask.shape} and {gt_mask.shape}"
        )
    true_labels, lesions = ndimage.label(gt_mask, structure=CONNECTIVITY_26)
    predicted_labels, predicted = ndimage.label(mask, structure=CONNECTIVITY_26)
    sizes = np.bincount(true_labels.ravel(), minlength=lesions + 1)[1:]
    covered = np.bincount(true_labels[mask], minlength=lesions + 1)[1:]
    touching = np.bincount(predicted_labels[gt_mask], minlength=predicted + 1)[1:]
    return LesionCounts(
        lesions=lesions,
        detected=int(((covered > 0) & (covered >= min_overlap * sizes)).sum()),
        predicted=predicted,
        false_positives=int((touching == 0).sum()),
    )
