"""RoDeO: how well the boxes around predicted lesions fit those around the true ones.

Meissen, Mueller, Kaissis and Rueckert, "Robust Detection Outcome: A Metric for Pathology Detection in Medical Images",
MIDL 2023, equations 1 to 6, with vectors of any dimension in place of the two of the paper: boxes around 26-connected
components of a volume, or around 8-connected ones of a slice. Per image the boxes are matched one to one (Hungarian
algorithm), and over all matched pairs of all images

- localisation is the mean of exp(-ln 2 |d|^2), d the distance of the centres in sizes of the true box: 1/2 at one size;
- shape is the mean IoU of the two boxes moved to one corner;
- classification is the Matthews correlation of the one-hot classes, not below 0.

Each is multiplied by the share of boxes that were matched, matched / (matched + over + missed), and the total is their
harmonic mean. With one class, "anomaly", no pair can disagree: classification is 1 before the multiplication and the
share of matched boxes after it, so it says how many boxes found a partner and nothing about kinds of lesions.

Everything is kept as sums over pairs, so that scans add up and patients can be resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from monailabel_app.errors import InvalidSettings, InvalidVolume

Boxes = np.ndarray  # (n, 2, d): the lower corner and the size of each box, sizes above 0


@dataclass(frozen=True)
class RodeoSums:
    """Sums over the matched pairs of one scan, or of several added up.

    matched, over, missed: pairs, predicted boxes without a partner, true boxes without one. localisation, shape: sums
    over the pairs. agreeing: pairs of one class. classes: how many there are.
    """

    matched: int = 0
    over: int = 0
    missed: int = 0
    localisation: float = 0.0
    shape: float = 0.0
    agreeing: int = 0
    classes: int = 1

    def __add__(self, other: RodeoSums) -> RodeoSums:
        if self.classes != other.classes:
            raise InvalidSettings(f"expected sums of equally many classes, got {self.classes} and {other.classes}")
        return RodeoSums(
            self.matched + other.matched,
            self.over + other.over,
            self.missed + other.missed,
            self.localisation + other.localisation,
            self.shape + other.shape,
            self.agreeing + other.agreeing,
            self.classes,
        )

    def scores(self) -> dict[str, float]:
        """``localisation``, ``shape``, ``classification`` and ``total`` in [0, 1]; NaN where there is no box at all."""
        correlation = _correlation(self.matched, self.agreeing, self.classes)
        found = rodeo_scores(self.matched, self.over, self.missed, self.localisation, self.shape, correlation)
        return {name: float(value) for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The sums as the record of a scan keeps them; ``total`` is the scan's own, None without a box.

        classification: pairs of one class; None where there is one class only.
        """
        total = self.scores()["total"]
        return {
            "localisation": self.localisation,
            "shape": self.shape,
            "classification": self.agreeing if self.classes > 1 else None,
            "total": None if np.isnan(total) else total,
            "matched": self.matched,
            "over": self.over,
            "missed": self.missed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RodeoSums:
        """The inverse of ``to_json`` for sums of one class."""
        matched = int(value["matched"])
        return cls(matched, int(value["over"]), int(value["missed"]), value["localisation"], value["shape"], matched)


def rodeo_boxes(mask: np.ndarray, gt_mask: np.ndarray, spacing_mm: Sequence[float]) -> RodeoSums:
    """RoDeO of one scan from its predicted and true mask, (x, y, z) each, or (x, y).

    The boxes are in mm along the voxel axes; since every term compares boxes axis by axis, another spacing gives the
    same figures. Raises InvalidVolume for masks of other shapes, InvalidSettings for a spacing that does not fit.
    """
    mask, gt_mask = np.asarray(mask) > 0, np.asarray(gt_mask) > 0
    if mask.shape != gt_mask.shape or mask.ndim not in (2, 3):
        raise InvalidVolume(f"expected two masks of one shape, 2-D or 3-D, got {mask.shape} and {gt_mask.shape}")
    return rodeo_sums(component_boxes(mask, spacing_mm), component_boxes(gt_mask, spacing_mm))


def component_boxes(mask: np.ndarray, spacing_mm: Sequence[float]) -> Boxes:
    """(n, 2, d): corner and size in mm of the box around each component; voxels that touch at a corner are one.

    Raises InvalidSettings for a spacing of another dimension or not above 0.
    """
    mask = np.asarray(mask) > 0
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (mask.ndim,) or not (spacing > 0).all():
        raise InvalidSettings(f"expected {mask.ndim} voxel sizes above 0, got {list(spacing_mm)}")
    labels, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, dtype=bool))
    found = [[[part.start, part.stop - part.start] for part in box] for box in ndimage.find_objects(labels)]
    return np.asarray(found, dtype=np.float64).reshape(-1, mask.ndim, 2).transpose(0, 2, 1) * spacing


def rodeo_sums(
    predicted: Boxes,
    true: Boxes,
    predicted_classes: Sequence[int] | None = None,
    true_classes: Sequence[int] | None = None,
    *,
    classes: int = 1,
    class_weight: float = 0.0,
) -> RodeoSums:
    """Match the boxes of one image and sum over the pairs.

    predicted, true: (n, 2, d), (m, 2, d), corner and size. The pairs minimise -gIoU - class_weight [same class] in
    sum. class_weight: of ``image_class_weight`` over the whole data set; with one class it changes nothing.
    Raises InvalidSettings for boxes of another form.
    """
    predicted, true = (np.asarray(boxes, dtype=np.float64) for boxes in (predicted, true))
    for boxes in (predicted, true):
        if boxes.ndim != 3 or boxes.shape[1] != 2 or not (boxes[:, 1] > 0).all():
            raise InvalidSettings(f"expected boxes as (n, 2, d) with sizes above 0, got shape {boxes.shape}")
    if not len(predicted) or not len(true):
        return RodeoSums(over=len(predicted), missed=len(true), classes=classes)
    names = [
        np.zeros(len(boxes), dtype=int) if given is None else np.asarray(given, dtype=int)
        for given, boxes in ((predicted_classes, predicted), (true_classes, true))
    ]
    same = names[0][:, None] == names[1][None]
    rows, columns = optimize.linear_sum_assignment(-_generalised_iou(predicted, true) - class_weight * same)
    mine, wanted = predicted[rows], true[columns]
    apart = ((mine[:, 0] + mine[:, 1] / 2) - (wanted[:, 0] + wanted[:, 1] / 2)) / wanted[:, 1]
    shared = np.minimum(mine[:, 1], wanted[:, 1]).prod(axis=1)
    return RodeoSums(
        matched=len(rows),
        over=len(predicted) - len(rows),
        missed=len(true) - len(rows),
        localisation=float(np.exp2(-(apart**2).sum(axis=1)).sum()),
        shape=float((shared / (mine[:, 1].prod(axis=1) + wanted[:, 1].prod(axis=1) - shared)).sum()),
        agreeing=int(same[rows, columns].sum()),
        classes=classes,
    )


def image_class_weight(predicted: np.ndarray, true: np.ndarray) -> float:
    """Weight of the class in the matching: Matthews correlation of which classes each image holds, not below 0.

    predicted, true: (images, classes) bool. 0 where either says the same of every image and class.
    """
    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (predicted, true))
    if not len(first) or first.std() == 0 or second.std() == 0:
        return 0.0
    return max(0.0, float(np.corrcoef(first, second)[0, 1]))


def rodeo_scores(
    matched: Any, over: Any, missed: Any, localisation: Any, shape: Any, correlation: Any = 1.0
) -> dict[str, np.ndarray]:
    """The scores from sums, numbers or arrays of one shape (one entry per resample).

    correlation: of the classes of the pairs; 1 with one class. NaN where there is no box, 0 where none is matched.
    """
    matched, over, missed, localisation, shape = (
        np.asarray(v, dtype=np.float64) for v in (matched, over, missed, localisation, shape)
    )
    boxes = matched + over + missed
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = {
            "localisation": localisation / boxes,
            "shape": shape / boxes,
            "classification": matched * np.maximum(correlation, 0.0) / boxes,
        }
        total = 3 / sum(1 / part for part in parts.values())
    return {**parts, "total": np.where(boxes > 0, total, np.nan)}


def _correlation(matched: int, agreeing: int, classes: int) -> float:
    """Matthews correlation of one-hot rows: with as many ones in both it depends on the agreeing pairs alone."""
    if classes < 2 or not matched:
        return 1.0
    return max(0.0, (agreeing * classes - matched) / (matched * (classes - 1)))


def _generalised_iou(first: Boxes, second: Boxes) -> np.ndarray:
    """(n, m): IoU less the share of the enclosing box that neither fills (Rezatofighi et al., CVPR 2019)."""
    low, high = first[:, None, 0], (first[:, 0] + first[:, 1])[:, None]
    low_2, high_2 = second[None, :, 0], (second[:, 0] + second[:, 1])[None]
    shared = np.maximum(np.minimum(high, high_2) - np.maximum(low, low_2), 0).prod(axis=-1)
    union = first[:, 1].prod(axis=-1)[:, None] + second[:, 1].prod(axis=-1)[None] - shared
    around = (np.maximum(high, high_2) - np.minimum(low, low_2)).prod(axis=-1)
    return shared / union - (around - union) / around
