"""What healthy scans measure, and how far another scan is from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .gate_features import FEATURES, NETWORK, OUTLINE, PLAIN

# The distances of the whole-brain network that a feature is made of.
KINDS: Mapping[str, str] = {"network_error": "mse", "network_perceptual": "perceptual"}
# Which features are judged together; each set has thresholds of its own.
SETS: Mapping[str, tuple[str, ...]] = {"full": (*PLAIN, *NETWORK), "plain": PLAIN, "outline": OUTLINE}
# Spreads that a difference has to exceed to mean anything, whatever few healthy scans say.
_LEAST = {
    "brain_volume_ml": 0.08,
    "outline_misfit": 0.01,
    "coverage": 0.03,
    "outside_ml": 0.5,
    "template_correlation": 0.01,
    "upside_down": 0.02,
    "front_back": 0.02,
    "histogram_distance": 0.3,
    "noise": 0.003,
    "sharpness": 0.01,
    "dark_ml": 0.5,
    "bright_ml": 0.5,
    "odd_share": 0.3,
}


@dataclass(frozen=True)
class Measured:
    """One scan's features. places: words for where. levels: the network's distances by kind, one per noise level."""

    values: Mapping[str, float]
    places: Mapping[str, str]
    levels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Healthy:
    """What healthy scans measure. centre, spread: of every feature; levels: (mean, deviation) per noise level by kind.

    scores: by set, of each healthy scan against the others.
    """

    count: int
    centre: Mapping[str, float]
    spread: Mapping[str, float]
    levels: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scores: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, scans: Sequence[Measured]) -> Healthy:
        """From the measurements of held-out healthy scans; three at least."""
        whole = cls.moments(scans)
        sets = {name: set(kept) & set(whole.centre) for name, kept in SETS.items() if whole.levels or name != "full"}
        sets = {name: kept for name, kept in sets.items() if kept}
        scores: dict[str, list[float]] = {name: [] for name in sets}
        for index, scan in enumerate(scans):
            others = cls.moments([*scans[:index], *scans[index + 1 :]])
            z = others.deviations(scan)
            for name, kept in sets.items():
                scores[name].append(max(z[feature] for feature in kept))
        return replace(whole, scores={name: tuple(values) for name, values in scores.items()})

    @classmethod
    def moments(cls, scans: Sequence[Measured]) -> Healthy:
        """Means and spreads, without scores: those need every scan against the others."""
        kinds = scans[0].levels
        levels = {}
        for kind in kinds:
            stack = np.stack([scan.levels[kind] for scan in scans])
            levels[kind] = stack.mean(axis=0), np.maximum(stack.std(axis=0, ddof=1), 1e-9)
        rows = [with_network(scan, levels) for scan in scans]
        centre, spread = {}, {}
        for name in rows[0]:
            values = np.array([FEATURES[name].scaled(row[name]) for row in rows])
            centre[name] = float(values.mean())
            # A further scan deviates from the mean of n by this, and few scans show their spread too small.
            spread[name] = max(float(values.std(ddof=1)) * np.sqrt(1 + 1 / len(values)), _LEAST.get(name, 1e-4))
        return cls(len(scans), centre, spread, levels, {})

    def deviations(self, scan: Measured) -> dict[str, float]:
        """Every feature in healthy deviations towards its odd side."""
        found = {}
        for name, value in with_network(scan, self.levels).items():
            if name not in self.centre or not np.isfinite(value):
                continue
            z = (FEATURES[name].scaled(value) - self.centre[name]) / self.spread[name]
            found[name] = {"high": z, "low": -z, "both": abs(z)}[FEATURES[name].odd]
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for the gate's file."""
        return {
            "count": self.count,
            "features": {name: [self.centre[name], self.spread[name]] for name in self.centre},
            "levels": {kind: [part.tolist() for part in parts] for kind, parts in self.levels.items()},
            "scores": {name: list(values) for name, values in self.scores.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Healthy:
        """The inverse of ``to_json``."""
        return cls(
            int(value["count"]),
            {name: float(pair[0]) for name, pair in value["features"].items()},
            {name: float(pair[1]) for name, pair in value["features"].items()},
            {kind: (np.array(parts[0]), np.array(parts[1])) for kind, parts in value["levels"].items()},
            {name: tuple(values) for name, values in value["scores"].items()},
        )


def with_network(scan: Measured, levels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The features and, of the network, the mean z-score over its noise levels (Graham et al., section 2.3)."""
    values = dict(scan.values)
    for name, kind in KINDS.items():
        # Of a network set to other noise levels than the gate was calibrated with nothing can be said.
        if kind in levels and kind in scan.levels and len(scan.levels[kind]) == len(levels[kind][0]):
            mean, deviation = levels[kind]
            values[name] = float(((scan.levels[kind] - mean) / deviation).mean())
    return values
