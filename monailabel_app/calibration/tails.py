"""How rare a calibrated value is among healthy voxels: the scale on which the maps of different models are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monailabel_app.errors import InvalidSettings

# Shares of healthy brain voxels above the tabulated values. Rarer ones would rest on single voxels of a few scans.
TAIL_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
_SLOPE_FROM = TAIL_SHARES.index(0.01)


def tail_table(healthy_values: Sequence[np.ndarray], patients: Sequence[str] | None = None) -> tuple[float, ...]:
    """The value that each of TAIL_SHARES of healthy voxels exceeds, every patient with the same weight.

    healthy_values: calibrated brain voxels, (voxels,) per scan. patients: whom each scan shows, by default somebody
    else each.
    """
    names = list(patients) if patients is not None else list(range(len(healthy_values)))
    share = {name: 1.0 / (len(set(names)) * names.count(name)) for name in names}
    weights = np.concatenate([np.full(len(v), share[n] / len(v)) for n, v in zip(names, healthy_values, strict=True)])
    pooled = np.concatenate(healthy_values)
    order = np.argsort(pooled)
    above = 1 - np.cumsum(weights[order])
    last = len(pooled) - 1
    found = [pooled[order][min(int(np.searchsorted(-above, -tail)), last)] for tail in TAIL_SHARES]
    return tuple(round(float(value), 6) for value in found)


def rarity(values: np.ndarray, table: Sequence[float]) -> np.ndarray:
    """-log10 of the share of healthy voxels above each value: float32, 0 for a value of 0, growing with the value.

    Between the tabulated shares linear in the value; beyond the last one the tail goes on exponentially, as steep as
    between shares of 1 % and 0.01 %, so that a striking lesion is told from a moderate one. table: of ``tail_table``.
    Raises InvalidSettings for a table of another length or without spread.
    """
    at, rare, slope = _knots(table)
    beyond = np.maximum(values - at[-1], 0) * slope
    return (np.interp(values, at, rare) + beyond).astype(np.float32)


def value_of(rare: float, table: Sequence[float]) -> float:
    """The calibrated value of that ``rarity``: its inverse. Raises InvalidSettings as that does."""
    at, known, slope = _knots(table)
    return float(np.interp(rare, known, at) + max(rare - known[-1], 0.0) / slope)


def _knots(table: Sequence[float]) -> tuple[list[float], list[float], float]:
    """Values, their rarities, and how steeply the rarity goes on beyond the last."""
    if len(table) != len(TAIL_SHARES):
        raise InvalidSettings(
            f"expected a table of {len(TAIL_SHARES)} healthy values, got {len(table)}; calibrate the model again"
        )
    at, rare = [0.0], [0.0]
    for value, tail in zip(table, TAIL_SHARES, strict=True):
        if value > at[-1]:
            at.append(float(value))
            rare.append(-float(np.log10(tail)))
        elif len(at) > 1:
            rare[-1] = -float(np.log10(tail))  # the same value: the rarer share is the one that exceeds it
    rise = max(table[-1] - table[_SLOPE_FROM], 1e-6)
    if len(at) < 2:
        raise InvalidSettings("expected healthy values with spread, got none above 0; calibrate the model again")
    slope = float(np.log10(TAIL_SHARES[_SLOPE_FROM] / TAIL_SHARES[-1])) / rise
    return at, rare, slope
