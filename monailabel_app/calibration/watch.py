"""Whether a sequence of scans has changed since it began: tests that may be looked at as often as one likes.

A conformal test martingale (Vovk, Testing randomness online, Statistical Science 36, 2021) bets against the claim that
the scans are exchangeable, that is, that their order does not matter. Every scan's rank among all before it is uniform
as long as nothing changes; the capital of whoever bets on that wins nothing on average, and by Ville's inequality it
ever reaches 1/a with probability a at most, whatever the distribution of the values is and however often the capital is
looked at. The bets are those of the Simple Jumper (Vovk et al., Retrain or not retrain, COPA 2021): on small ranks, on
large ones, or on none, with a little of the capital moved between them at every step.

The scans need not be healthy: the sequence is compared with itself only.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

JUMP = 0.01
_BETS = np.array([-1.0, 0.0, 1.0])
# Below this a change of any size goes unnoticed or a chance one is taken for one.
LEAST_SCANS = 20
_SEED = 20


def conformal_ranks(values: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Of every value the share of those up to it, itself among them, that are larger; ties are broken at random.

    (n,) in 0 to 1; independent and uniform where the values are exchangeable.
    """
    seen: list[float] = []
    ranks = np.empty(len(values))
    for n, value in enumerate(values):
        low, high = bisect.bisect_left(seen, value), bisect.bisect_right(seen, value)
        equal, larger = high - low + 1, len(seen) - high
        ranks[n] = (larger + generator.random() * equal) / (n + 1)
        seen.insert(high, value)
    return ranks


def capital(ranks: Sequence[float]) -> np.ndarray:
    """What the bets have come to after every rank, (n,), from 1."""
    parts = np.full(3, 1 / 3)
    path = np.empty(len(ranks))
    for n, rank in enumerate(ranks):
        parts = (1 - JUMP) * parts + JUMP * parts.mean()
        parts = parts * (1 + _BETS * (rank - 0.5))
        path[n] = parts.sum()
    return path


def watch(values: Sequence[float], alarm: float) -> dict[str, Any]:
    """JSON types: scans, state (``few``, ``steady``, ``changed``), path (log10 of the capital), alarm (log10).

    alarm: the capital that is one; 1/a for a false-alarm probability of a over the whole sequence. Of a changed
    sequence also at (the scan, from 1, at which it was told), since (from which on, about) and higher (whether values
    rose).
    """
    told: dict[str, Any] = {"scans": len(values), "alarm": round(float(np.log10(alarm)), 4)}
    if len(values) < LEAST_SCANS:
        return {**told, "state": "few", "path": []}
    path = np.log10(capital(conformal_ranks(values, np.random.default_rng(_SEED))))
    told |= {"path": [round(float(step), 4) for step in path], "state": "steady"}
    reached = np.flatnonzero(path >= np.log10(alarm))
    if len(reached):
        at = int(reached[0])
        since, higher = change_point(values[: at + 1])
        told |= {"state": "changed", "at": at + 1, "since": since + 1, "higher": higher}
    return told


def change_point(values: Sequence[float]) -> tuple[int, bool]:
    """Where a sequence changed most likely: how many values come before, and whether those after are higher.

    By ranks (Pettitt, A non-parametric approach to the change-point problem, Applied Statistics 28, 1979).
    """
    ranks = stats.rankdata(values)
    count = np.arange(1, len(ranks))
    walk = 2 * np.cumsum(ranks)[:-1] - count * (len(ranks) + 1)
    before = int(np.abs(walk).argmax())
    return before + 1, bool(walk[before] < 0)


def compare(reference: Sequence[float], recent: Sequence[float], *, yes_no: bool) -> dict[str, Any] | None:
    """Recent scans against the first ones: Fisher's exact test of shares, or Kolmogorov and Smirnov's of values.

    JSON types: reference and recent (share or median), p_value; None where either has fewer than LEAST_SCANS.
    """
    if min(len(reference), len(recent)) < LEAST_SCANS:
        return None
    first, last = np.asarray(reference, dtype=float), np.asarray(recent, dtype=float)
    if yes_no:
        table = [[int(part.sum()), int(len(part) - part.sum())] for part in (first, last)]
        p_value = float(stats.fisher_exact(table)[1])
        middle = (float(first.mean()), float(last.mean()))
    else:
        p_value = float(stats.ks_2samp(first, last).pvalue)
        middle = (float(np.median(first)), float(np.median(last)))
    return {"reference": round(middle[0], 4), "recent": round(middle[1], 4), "p_value": float(f"{p_value:.3g}")}


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979), by the same keys."""
    corrected, largest = {}, 0.0
    for rank, (key, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * value))
        corrected[key] = float(f"{largest:.3g}")
    return corrected


def share_interval(yes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share."""
    found = stats.binomtest(yes, total).proportion_ci(level, method="exact")
    return round(float(found.low), 4), round(float(found.high), 4)
