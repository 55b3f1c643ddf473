"""The law of total variance over repeated analyses: which part of a result's spread comes from where.

Var(Y) = Var_p(E[Y|p]) + E_p[Var_m(E[Y|p,m])] + E_pm[Var_s(Y|p,m)] for preparations p, models m and noise seeds s, as
Feiner et al. (UNSURE workshop, MICCAI 2023) carry uncertainty from one stage of a pipeline to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monailabel_app.errors import InvalidSettings

SOURCES = ("preprocessing", "model", "noise")


@dataclass(frozen=True)
class TotalVariance:
    """Population variances whose sum is that of all samples; each of the means over all that is drawn after it."""

    preprocessing: float
    model: float
    noise: float

    @property
    def total(self) -> float:
        """The variance of all samples."""
        return self.preprocessing + self.model + self.noise

    @property
    def std(self) -> float:
        """The deviation of all samples."""
        return float(np.sqrt(self.total))

    def shares(self) -> dict[str, float]:
        """The part of each source in the total, adding up to 1; all 0 where nothing varies."""
        total = self.total
        return {name: getattr(self, name) / total if total > 0 else 0.0 for name in SOURCES}


def decompose(samples: np.ndarray) -> TotalVariance:
    """samples: (preparations, models, seeds), every combination once, the same seeds for each.

    With the same seeds everywhere, what a noise field does to all preparations alike cancels in their comparison; with
    few samples each part is as rough as a variance of few numbers is. Raises InvalidSettings for another shape or NaN.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 3 or samples.size == 0 or np.isnan(samples).any():
        raise InvalidSettings(
            f"expected (preparations, models, seeds) samples without NaN, got an array of shape {samples.shape}"
        )
    by_model = samples.mean(axis=2)
    return TotalVariance(
        preprocessing=float(by_model.mean(axis=1).var()),
        model=float(by_model.var(axis=1).mean()),
        noise=float(samples.var(axis=2).mean()),
    )


def pooled_variance(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Variance of a mixture from its parts' means and variances, along the first axis: E[Var] + Var[E]."""
    return np.mean(variances, axis=0) + np.var(means, axis=0)
