"""A model's held-out figures, their comparison with another model's, and the file they are kept in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from monailabel_app.errors import EvaluationFailed
from monailabel_app.files import replace_file
from monailabel_app.metrics.intervals import bootstrap_interval
from monailabel_app.types import to_json

_LOG = logging.getLogger(__name__)
_RESAMPLES = 5000
Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class QualityFigures:
    """One model on one held-out set; average precisions and rates lie between 0 and 1.

    held_out: digest of scans, lesions and protocol; only figures of one digest can be compared. prevalence: the share
    of lesion voxels, which is the average precision of a map that knows nothing. sensitivity: share of lesion voxels
    above the threshold that 1 % of the healthy voxels exceed.
    """

    model_id: str
    model_hash: str
    held_out: str
    score: str
    mean_ap: float
    mean_ap_interval: tuple[float, float]
    pooled_ap: float
    per_scan_ap: tuple[float, ...]
    sensitivity: float
    prevalence: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> QualityFigures:
        """The inverse of ``to_json``."""
        lists = {name: tuple(value[name]) for name in ("mean_ap_interval", "per_scan_ap")}
        return cls(**{**value, **lists})


@dataclass(frozen=True)
class Comparison:
    """Difference of mean average precision, first minus second, with its 95 % interval over scans."""

    difference: float
    interval: tuple[float, float]
    verdict: Verdict
    scans: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(asdict(self))


def compare(first: QualityFigures, second: QualityFigures) -> Comparison:
    """Paired over the held-out scans. Raises EvaluationFailed for figures from different held-out sets."""
    if first.held_out != second.held_out:
        raise EvaluationFailed(
            "expected models measured on the same held-out scans and lesions, got different ones; measure both again"
        )
    differences = np.subtract(first.per_scan_ap, second.per_scan_ap)
    low, high = mean_interval(differences)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    return Comparison(float(differences.mean()), (low, high), verdict, len(differences))


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean over scans, as wide as their number warrants.

    Resampling few values shows their spread too small: the percentiles are taken further out, as Student's t has them
    (the expanded percentile interval of Hesterberg, The American Statistician 69, 2015).
    """
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    tail = float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1)))
    interval = bootstrap_interval(
        np.mean, values, generator=np.random.default_rng(0), resamples=_RESAMPLES, level=1 - 2 * tail
    )
    return interval.low, interval.high


def may_replace(candidate: QualityFigures, incumbent: QualityFigures | None) -> bool:
    """Whether the candidate's mean average precision is not lower; without an incumbent always."""
    return incumbent is None or compare(candidate, incumbent).difference >= 0


def read_kept(file: Path | None) -> dict[str, QualityFigures]:
    """Figures measured before; a file that cannot be read only costs measuring again."""
    if file is None or not Path(file).is_file():
        return {}
    try:
        return {key: QualityFigures.from_json(value) for key, value in json.loads(Path(file).read_text()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        _LOG.warning("the file of measured figures cannot be read; models are measured again")
        return {}


def keep(file: Path | None, figures: Mapping[str, QualityFigures]) -> None:
    """Write figures by rename; what cannot be written is only logged."""
    if file is None:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps({key: value.to_json() for key, value in figures.items()}, indent=1) + "\n")
    except OSError as error:
        _LOG.warning("the measured figures could not be kept for later: %s", error.strerror)
