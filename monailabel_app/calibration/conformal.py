"""Split-conformal bounds of the volume that is falsely marked in a further healthy scan.

Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005), section 4; Angelopoulos et al., Conformal Risk
Control (2022): among n + 1 exchangeable values, a new one exceeds the k-th smallest of n with probability at most
1 - k / (n + 1). The maps are standardised with the statistics of the other patients, each scan's own left out: exact
for statistics from elsewhere, nearly so here, since a new scan meets statistics of one patient more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from monailabel_app.errors import InvalidSettings

from .false_volume import SMALLEST_LESION_ML, FalseVolumeCurve, false_volume_curve, of_patients, volume_at
from .operating_points import BOUNDED, TARGET_FPR, OperatingPoint, point_at, threshold_without

LEVEL = 0.95
BOUNDED_ML = 2.0
BOUNDS_ML = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
# A slice of 2 mm holds a fiftieth of a brain; a fiftieth of 2 ml is less than the smallest lesion that is marked at
# all. A tenth of the volume's bounds is 1 cm2 for the operating point.
SLICE_SHARE = 0.1


@dataclass(frozen=True)
class Bound:
    """value: what a further exchangeable one exceeds with a probability of at most 1 - level."""

    value: float
    level: float


def attainable_level(count: int, level: float = LEVEL) -> float:
    """The least level >= ``level`` that ``count`` healthy patients support; n / (n + 1) where they are too few."""
    return _rank(count, level) / (count + 1)


def upper_bound(values: Sequence[float], *, level: float = LEVEL) -> Bound:
    """The ceil((n + 1) level)-th smallest of n values, the largest where there are too few for the level.

    Raises InvalidSettings without values.
    """
    if not len(values):
        raise InvalidSettings("expected the values of at least one healthy scan, got none")
    rank = _rank(len(values), level)
    return Bound(float(np.sort(np.asarray(values, dtype=np.float64))[rank - 1]), rank / (len(values) + 1))


def _rank(count: int, level: float) -> int:
    return min(count, math.ceil((count + 1) * level - 1e-9))


@dataclass(frozen=True)
class FalseVolumes:
    """points: as given, each with its healthy volumes, and ``bounded``. table: threshold by bound in ml."""

    points: Mapping[str, OperatingPoint]
    table: Mapping[float, float]


def bounds_of(depth: int) -> tuple[float, tuple[float, ...]]:
    """The bound of the operating point ``bounded`` and all that are tabulated, in ml, for maps of this many levels.

    Models of single slices (depth 1) have a tenth of the bounds of volumes, in ml of a slice of 2 mm.
    """
    share = SLICE_SHARE if depth == 1 else 1.0
    return BOUNDED_ML * share, tuple(round(value * share, 3) for value in BOUNDS_ML)


def false_volumes(
    points: Mapping[str, OperatingPoint],
    maps: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    patients: Sequence[str],
) -> FalseVolumes:
    """The healthy false-positive volumes of every operating point, and thresholds that bound them.

    points: of ``choose_operating_points``. maps: calibrated, (X, Y, Z) per healthy scan, each standardised without its
    patient; values: their analysed voxels, (voxels,) per scan. A patient counts once, with the worst of the scans.

    The bound of a point whose threshold comes from the same scans is taken from volumes at the threshold that the
    other patients give: otherwise a scan that marks much would have raised the threshold that it is judged by.
    """
    bounded_ml, table_ml = bounds_of(maps[0].shape[2])
    curves = [false_volume_curve(made, limit_ml=max(table_ml)) for made in maps]
    ordered = [np.sort(v) for v in values]
    found = {}
    for name, point in points.items():
        marked = [volume_at(curve, made, point.threshold) for curve, made in zip(curves, maps, strict=True)]
        judged = marked
        if name in TARGET_FPR:
            others = threshold_without(ordered, TARGET_FPR[name], patients)
            judged = [volume_at(c, made, t) for c, made, t in zip(curves, maps, others, strict=True)]
        found[name] = _with_volumes(point, marked, upper_bound(of_patients(judged, patients)))
    table = {limit: _threshold(curves, limit, patients) for limit in table_ml}
    point = point_at(table[bounded_ml].value, ordered, patients)
    marked = [volume_at(curve, made, point.threshold) for curve, made in zip(curves, maps, strict=True)]
    point = _with_volumes(point, marked, Bound(bounded_ml, table[bounded_ml].level))
    found[BOUNDED] = replace(point, target_ml=bounded_ml)
    return FalseVolumes(
        MappingProxyType(found), MappingProxyType({limit: bound.value for limit, bound in table.items()})
    )


def _threshold(curves: Sequence[FalseVolumeCurve], limit_ml: float, patients: Sequence[str]) -> Bound:
    return upper_bound(of_patients([curve.least_threshold(limit_ml) for curve in curves], patients))


def _with_volumes(point: OperatingPoint, marked: Sequence[float], bound: Bound) -> OperatingPoint:
    return replace(
        point,
        false_ml=tuple(round(value, 4) for value in marked),
        bound_ml=round(bound.value, 4),
        bound_level=round(bound.level, 4),
    )


def record_of(patients: int, depth: int) -> dict[str, Any]:
    """What a calibration says about its bounds: the wanted and the attained level, and what the volumes are of."""
    return {
        "level": LEVEL,
        "attained": round(attainable_level(patients), 4),
        "bounded_ml": bounds_of(depth)[0],
        "of": "a slice of 2 mm" if depth == 1 else "the whole scan",
        "smallest_lesion_ml": SMALLEST_LESION_ML,
    }


def warning_of(patients: int) -> str:
    """The sentence of a calibration on too few patients for the level; empty where they are enough."""
    attained = attainable_level(patients)
    if attained >= LEVEL - 1e-9:
        return ""
    return (
        f"the bound of the falsely marked volume holds for {100 * attained:.0f} % of healthy scans, not "
        f"{100 * LEVEL:.0f} %: that takes 19 healthy patients, the calibration has {patients}"
    )
