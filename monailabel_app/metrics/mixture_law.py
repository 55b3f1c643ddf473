"""How a group's figure changes with its share in the training data: a straight line, and where two groups meet.

Meissen et al., (Predictable) Performance Bias in Unsupervised Anomaly Detection (2023): over training mixtures the
subgroup AUROC follows sAUROC_g(p) = a_g + b_g p. Equal shares need not give equal figures; the lines say which would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from monailabel_app.errors import InvalidSettings

from .subgroup import Estimate


class MixtureLaw(NamedTuple):
    """figure(p) = intercept + slope p. mean_absolute_error: of the line at the ``runs`` points it was fitted to."""

    intercept: Estimate
    slope: Estimate
    mean_absolute_error: float
    runs: int


class EqualShare(NamedTuple):
    """The share at which two lines meet, in [0, 1]; ``met``: the part of the resamples that have such a share.

    low, high: 95 % limits over those resamples.
    """

    value: float
    low: float
    high: float
    met: float


def fit_law(shares: Sequence[float], figures: Sequence[float], *, level: float = 0.95) -> MixtureLaw:
    """Least squares over training runs, with limits by Student's t; each run counts as independent of the others.

    shares: (n,) of the group in the training data of each run, in [0, 1]. figures: (n,) what the run reached. Raises
    InvalidSettings for fewer than three runs, a single share, a share outside [0, 1], or NaN.
    """
    p, y = _checked(shares, figures)
    centred = p - p.mean()
    square = float((centred**2).sum())
    slope = float(centred @ y / square)
    intercept = float(y.mean() - slope * p.mean())
    rest = y - intercept - slope * p
    error = float(np.sqrt((rest**2).sum() / (len(p) - 2)))
    reach = float(stats.t.ppf((1 + level) / 2, len(p) - 2)) * error
    wide, narrow = reach * np.sqrt(1 / len(p) + p.mean() ** 2 / square), reach / np.sqrt(square)
    return MixtureLaw(
        Estimate(intercept, float(intercept - wide), float(intercept + wide)),
        Estimate(slope, float(slope - narrow), float(slope + narrow)),
        float(np.abs(rest).mean()),
        len(p),
    )


def equal_share(
    shares: Sequence[float],
    first: Sequence[float],
    second: Sequence[float],
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
) -> EqualShare | None:
    """The share at which the lines of two groups meet; None when that is not in [0, 1], or nowhere.

    shares: (n,) of one group. first, second: (n,) the two groups' figures in each run. Runs are resampled. Raises
    InvalidSettings as ``fit_law`` does.
    """
    p, gap = _checked(shares, np.asarray(first, np.float64) - np.asarray(second, np.float64))
    found = _root(p[None], gap[None])[0]
    if not 0 <= found <= 1:
        return None
    picks = generator.integers(len(p), size=(resamples, len(p)))
    roots = _root(p[picks], gap[picks])
    inside = roots[(roots >= 0) & (roots <= 1)]
    low, high = np.quantile(inside, [0.025, 0.975]) if len(inside) else (np.nan, np.nan)
    return EqualShare(float(found), float(low), float(high), len(inside) / resamples)


def _root(p: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Where the least-squares line of each row is 0; NaN for level ones. (k, n) each -> (k,)."""
    centred = p - p.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (centred * gap).sum(axis=1) / (centred**2).sum(axis=1)
        return np.where(np.abs(slope) > 1e-12, p.mean(axis=1) - gap.mean(axis=1) / slope, np.nan)


def _checked(shares: Sequence[float], figures: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(shares, dtype=np.float64), np.asarray(figures, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1 or len(p) < 3 or np.isnan(y).any():
        raise InvalidSettings(f"expected a figure for each of at least 3 training runs, got {p.shape} and {y.shape}")
    if not ((p >= 0) & (p <= 1)).all() or len(set(p.tolist())) < 2:
        raise InvalidSettings(f"expected at least two different shares in [0, 1], got {sorted(set(p.tolist()))}")
    return p, y
