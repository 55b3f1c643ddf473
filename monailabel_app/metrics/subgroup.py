"""Whether a detector treats groups of people alike: figures per group, a test of equality, and what that can see.

Meissen et al., (Predictable) Performance Bias in Unsupervised Anomaly Detection (2023): an area under the ROC curve
computed within a group misses the bias, since one threshold serves everybody. The subgroup AUROC takes the true
positives from all patients and the false ones from the healthy scans of the group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import factorial, prod
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from monailabel_app.errors import InvalidSettings

from .imagewise import scan_auroc
from .patient_bootstrap import expanded_level, limits, patient_weights, weighted_aurocs, weighted_means

UNKNOWN = "unknown"
SCORE = "scan_score"
SAUROC, FPR_AT_TPR95 = "sauroc", "fpr_at_tpr95"
_TPR = 0.95
_BLOCK = 2**21  # numbers at once


@dataclass(frozen=True)
class HealthyScans:
    """patients: whose each scan is. values: by name, one number per scan (``scan_score``, volumes in ml, ...)."""

    patients: Sequence[str]
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Positives:
    """Scans with anomalies, of any group. scores: (m,) their scan scores; patients: whose each is."""

    patients: Sequence[str]
    scores: np.ndarray


class Estimate(NamedTuple):
    """A figure with its 95 % limits; NaN limits where a single patient tells nothing of the spread."""

    value: float
    low: float
    high: float


class Equality(NamedTuple):
    """Outcome of ``equality_test``. assignments: of patients to groups, all of them when ``exact``, else those drawn.

    left_out: patients with scans in several groups, who belong to none.
    """

    p_value: float
    exact: bool
    assignments: int
    left_out: int


def age_band(age: float | None, cuts: Sequence[float] = (40, 60)) -> str:
    """The band of an age: ``<40``, ``40-59`` (from 40, below 60) or ``>=60``; ``unknown`` for None and NaN.

    Raises InvalidSettings for cuts that do not rise and for an age that nobody has.
    """
    cuts = [float(cut) for cut in cuts]
    if not cuts or any(b <= a for a, b in pairwise(cuts)):
        raise InvalidSettings(f"expected rising ages as limits of the bands, such as 40,60, got {cuts}")
    if age is None or np.isnan(age):
        return UNKNOWN
    if not 0 <= age <= 130:
        raise InvalidSettings(f"expected an age between 0 and 130 years, got {age:g}; correct the table")
    place = int(np.searchsorted(cuts, age, side="right"))
    if place == 0:
        return f"<{cuts[0]:g}"
    if place == len(cuts):
        return f">={cuts[-1]:g}"
    low, high = cuts[place - 1], cuts[place]
    return f"{low:g}-{high - 1:g}" if high.is_integer() and high - 1 > low else f"{low:g} to <{high:g}"


def intersect(*labels: Sequence[str]) -> list[str]:
    """Groups by several attributes at once: ``F, <40``; ``unknown`` where one of them is."""
    return [UNKNOWN if UNKNOWN in parts else ", ".join(parts) for parts in zip(*labels, strict=True)]


def subgroup_auroc(positive_scores: Sequence[float], group_scores: Sequence[float]) -> float:
    """sAUROC: true positives of all patients against false ones among a group's healthy scans.

    Equal to the chance that any patient scores above a healthy person of the group, ties counted half. NaN if either is
    empty.
    """
    return scan_auroc(group_scores, positive_scores)


def threshold_at_tpr(scores: np.ndarray, weights: np.ndarray, tpr: float = _TPR) -> np.ndarray:
    """The highest score at or above which a share ``tpr`` of the positives lies, per resample.

    scores: (m,). weights: (r, m). Returns (r,); NaN where a resample has no positive.
    """
    order = np.argsort(-scores)
    reached = np.cumsum(weights[:, order], axis=1)
    first = np.argmax(reached >= tpr * reached[:, -1:] - 1e-9, axis=1)
    return np.where(reached[:, -1] > 0, scores[order][first], np.nan)


class GroupFigures:
    """Figures of any group of healthy scans; one draw of patients serves all, so that their differences are paired.

    With positives also ``sauroc`` and ``fpr_at_tpr95``: the share of the group at or above the threshold that finds
    95 % of all positives. Positives made from healthy scans are drawn together with these. Raises InvalidSettings for
    lists that do not fit, NaN, or no scan.
    """

    def __init__(
        self, healthy: HealthyScans, positives: Positives | None = None, *, resamples: int = 2000, seed: int = 0
    ) -> None:
        count = len(healthy.patients)
        values = {name: np.asarray(given, dtype=np.float64) for name, given in healthy.values.items()}
        if not count or any(given.shape != (count,) or np.isnan(given).any() for given in values.values()):
            raise InvalidSettings(f"expected one number per healthy scan ({count} of them) and none missing")
        self._patients, self._values, self._positives = np.asarray(healthy.patients), values, positives
        if positives is None or not len(positives.patients):
            self._positives = None
            self._weights, _ = patient_weights(list(healthy.patients), resamples=resamples, seed=seed)
            return
        scores = np.asarray(positives.scores, dtype=np.float64)
        if SCORE not in values or scores.shape != (len(positives.patients),) or np.isnan(scores).any():
            raise InvalidSettings("expected a scan score for every positive and every healthy scan")
        self._scores = scores
        self._positive_weights, self._weights = patient_weights(
            list(positives.patients), list(healthy.patients), resamples=resamples, seed=seed
        )
        self._thresholds = threshold_at_tpr(scores, self._positive_weights)

    @property
    def names(self) -> list[str]:
        """The figures that ``of`` knows."""
        return [*self._values, *((SAUROC, FPR_AT_TPR95) if self._positives is not None else ())]

    @property
    def threshold(self) -> float | None:
        """The score that finds 95 % of the positives."""
        return float(self._thresholds[0]) if self._positives is not None else None

    def of(self, name: str, members: np.ndarray) -> Estimate:
        """A figure of the scans for which ``members``, (n,) bool, holds."""
        return _estimate(self._resampled(name, members), self.people(members))

    def difference(self, name: str, members: np.ndarray, others: np.ndarray) -> Estimate:
        """That of ``members`` less that of ``others``."""
        return _estimate(
            self._resampled(name, members) - self._resampled(name, others),
            min(self.people(members), self.people(others)),
        )

    def people(self, members: np.ndarray) -> int:
        """How many patients are in a group."""
        return len(set(self._patients[members]))

    def _resampled(self, name: str, members: np.ndarray) -> np.ndarray:
        weights = self._weights[:, members]
        if name == SAUROC:
            return weighted_aurocs(self._positive_weights, self._scores, weights, self._values[SCORE][members])
        if name == FPR_AT_TPR95:
            above = self._values[SCORE][members] >= self._thresholds[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                return (weights * above).sum(axis=1) / weights.sum(axis=1)
        return weighted_means(weights, self._values[name][members])


def equality_test(
    values: Sequence[float],
    groups: Sequence[str],
    *,
    patients: Sequence[Any] | None = None,
    generator: np.random.Generator,
    permutations: int = 10_000,
) -> Equality:
    """Permutation test of equal means in all groups at once.

    Under the hypothesis every assignment of the patients to groups of these sizes is as likely as the observed one; the
    statistic is the sum of squares between the groups, for two of them the squared difference. All assignments are
    counted when there are no more than ``permutations``; otherwise that many are drawn, the observed one among them.
    patients: whose each value is; several of one person are averaged. Who has values in several groups is left out.

    Raises InvalidSettings for lists that do not fit, NaN, fewer than two groups, or fewer than one permutation.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    names = list(range(len(values))) if patients is None else list(patients)
    if not len(values) == len(groups) == len(names) or np.isnan(values).any() or permutations < 1:
        raise InvalidSettings(
            f"expected a number, a group and a patient per scan and at least one permutation, got {len(values)}, "
            f"{len(groups)}, {len(names)} and {permutations}"
        )
    means, labels, left_out = _per_patient(values, groups, names)
    kinds = sorted(set(labels))
    if len(kinds) < 2:
        raise InvalidSettings(f"expected patients of at least two groups to compare, got {len(kinds)}")
    sizes = [labels.count(kind) for kind in kinds]
    ordered = np.concatenate([means[[i for i, label in enumerate(labels) if label == kind]] for kind in kinds])
    centred = ordered - ordered.mean()
    # Sums in another order must count as ties.
    observed = _between(centred[None], sizes)[0] - 1e-10 * float((centred**2).sum())
    total = factorial(len(ordered)) // prod(factorial(size) for size in sizes)
    if total <= permutations:
        rows = np.array([centred[list(chosen)] for chosen in _assignments(range(len(ordered)), sizes)])
        return Equality(float((_between(rows, sizes) >= observed).mean()), True, total, left_out)
    extreme, left = 0, permutations
    while left:
        block = min(left, 1 + _BLOCK // len(centred))
        rows = generator.permuted(np.tile(centred, (block, 1)), axis=1)
        extreme += int((_between(rows, sizes) >= observed).sum())
        left -= block
    return Equality((1 + extreme) / (1 + permutations), False, permutations, left_out)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(order))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * float(p_values[index])))
        corrected[index] = highest
    return corrected.tolist()


def detectable_difference(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.05, power: float = 0.8
) -> float:
    """The true difference of two means that a two-sided test at ``level`` finds with probability ``power``.

    From the spread that the values have within their groups: (t(1 - level / 2) + t(power)) s sqrt(1/n + 1/m). An
    approximation for skewed values. NaN with fewer than two values in a group.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    freedom = n + m - 2
    spread = np.sqrt(((n - 1) * np.var(first, ddof=1) + (m - 1) * np.var(second, ddof=1)) / freedom)
    reach = stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(power, freedom)
    return float(reach * spread * np.sqrt(1 / n + 1 / m))


def patient_means(values: np.ndarray, patients: Sequence[Any]) -> np.ndarray:
    """One mean per patient, in the order of their first scan."""
    return _per_patient(np.asarray(values, np.float64), [""] * len(values), list(patients))[0]


def _per_patient(
    values: np.ndarray, groups: Sequence[str], patients: Sequence[Any]
) -> tuple[np.ndarray, list[str], int]:
    """Mean and group of every patient of one group, and how many have several."""
    found: dict[Any, list[int]] = {}
    for index, name in enumerate(patients):
        found.setdefault(name, []).append(index)
    kept = [rows for rows in found.values() if len({groups[i] for i in rows}) == 1]
    return np.array([values[rows].mean() for rows in kept]), [groups[r[0]] for r in kept], len(found) - len(kept)


def _between(rows: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Sum of squares between groups that follow each other along centred rows: (k, n) -> (k,)."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return (np.add.reduceat(rows, starts, axis=1) ** 2 / np.asarray(sizes)).sum(axis=1)


def _assignments(members: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every distribution of members over groups of these sizes, as one order of all members each."""
    if len(sizes) == 1:
        yield tuple(members)
        return
    for chosen in combinations(members, sizes[0]):
        taken = set(chosen)
        for rest in _assignments([i for i in members if i not in taken], sizes[1:]):
            yield chosen + rest


def _estimate(resampled: np.ndarray, people: int) -> Estimate:
    """Percentiles taken further out than 95 %, as ``expanded_level`` has them for so few people."""
    if people < 2:
        return Estimate(float(resampled[0]), float("nan"), float("nan"))
    low, high = limits(resampled, expanded_level(people))
    return Estimate(float(resampled[0]), low, high)
