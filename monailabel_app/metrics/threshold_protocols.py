"""The same maps at thresholds of three origins, side by side: what a published Dice means depends on which was used.

- healthy point: the operating point in use, chosen on healthy scans;
- healthy quantile: the value that 0.5 % of healthy voxels exceed;
- label-tuned: the threshold of the highest mean Dice on labelled scans of other patients. Papers report this one; who
  has no labels cannot reach it, so it is for comparison with papers only.

Dice is that of each case's voxels, without removing small components, as the mean over cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monailabel_app.errors import InvalidSettings

from .case_histograms import dices_above, first_bin_above, threshold_of

QUANTILE = 0.995


class TunedDices(NamedTuple):
    """thresholds: one, or one per half. dices: (cases,), each at the threshold that its patient had no part in."""

    thresholds: tuple[float, ...]
    dices: np.ndarray


def dices_at(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Dice of each case at a threshold, to the bin: (cases, 2, BINS) -> (cases,)."""
    return dices_above(counts)[:, first_bin_above(threshold)]


def tuned_elsewhere(counts: np.ndarray, tuning: np.ndarray) -> TunedDices:
    """Dice at the best threshold of other cases. counts, tuning: (cases, 2, BINS), of different patients.

    Raises InvalidSettings when no tuning case has a lesion.
    """
    best = _best_bin(dices_above(tuning))
    return TunedDices((threshold_of(best),), dices_above(counts)[:, best])


def cross_fitted(counts: np.ndarray, patients: Sequence[str], *, seed: int = 0) -> TunedDices | None:
    """Dice of each half of the patients at the best threshold of the other half; the halves are drawn at random.

    counts: (cases, 2, BINS); patients: whom each shows. None with fewer than two patients, or where a half has no
    lesion to tune on.
    """
    names = list(dict.fromkeys(patients))
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = {names[i] for i in drawn[: len(names) // 2]}
    half = np.array([name in first for name in patients], dtype=bool)
    if len(names) < 2:
        return None
    curves = dices_above(counts)
    dices, thresholds = np.full(len(curves), np.nan), []
    for part in (half, ~half):
        try:
            best = _best_bin(curves[~part])
        except InvalidSettings:
            return None
        dices[part] = curves[part, best]
        thresholds.append(threshold_of(best))
    return TunedDices(tuple(thresholds), dices)


def _best_bin(curves: np.ndarray) -> int:
    """The threshold of the highest mean Dice; never the lowest bin, which would mark everything."""
    known = curves[~np.isnan(curves).any(axis=1)]
    if not len(known):
        raise InvalidSettings("expected a labelled lesion to tune the threshold on, got none")
    return 1 + int(known[:, 1:].mean(axis=0).argmax())
