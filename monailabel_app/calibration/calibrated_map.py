"""From a raw score map to the calibrated one, and to the scan's score; the same for everybody."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monailabel_app.errors import CorruptModel, InvalidSettings
from monailabel_app.postprocessing.erosion import erode_brain
from monailabel_app.postprocessing.smooth import gaussian_smooth

from .drift import DriftReference
from .operating_points import OperatingPoint, numbers
from .voxel_statistics import VoxelStatistics

SMOOTHING_MM: Mapping[str, float] = MappingProxyType({"standard": 4.0, "none": 0.0, "strong": 6.0})
# Scores that go both ways: a deviation below the healthy mean counts like one above it.
TWO_SIDED = frozenset({"signed", "healed_signed", "evidence", "intensity_z", "atlas_z", "mahalanobis"})
# Raw maps that are made from smoothed ones already: only what is missing to the wanted smoothing is added.
SMOOTHED_MM: Mapping[str, float] = MappingProxyType(dict.fromkeys(("fisher", "harmonic", "strongest"), 4.0))
TOP_ML = 2.0
_JSON, _TENSORS = "calibration.json", "calibration.safetensors"
_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]*\]")  # a list of nothing but numbers


@dataclass(frozen=True)
class ScoreCalibration:
    """points[smoothing][operating point]; scan_scores[smoothing]: those of the held-out healthy scans.

    tails[smoothing]: the healthy values of ``tails.TAIL_SHARES``. bounds[smoothing]: the threshold of every tabulated
    bound in ml of the volume that is marked in a healthy scan (``conformal``). drift[smoothing]: what the bulk of
    healthy scans looks like. The last three are empty in calibrations of earlier versions, which also lack the
    operating point ``bounded``.
    """

    statistics: VoxelStatistics
    points: Mapping[str, Mapping[str, OperatingPoint]]
    scan_scores: Mapping[str, tuple[float, ...]]
    tails: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bounds: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    drift: Mapping[str, DriftReference] = field(default_factory=dict)

    def point(self, smoothing: str, name: str) -> OperatingPoint:
        """Raises InvalidSettings for a point that a calibration of an earlier version lacks."""
        points = self.points[smoothing]
        if name not in points:
            raise InvalidSettings(
                f"expected an operating point out of {', '.join(points)}, got {name!r}: the model was calibrated by an "
                "earlier version without it; calibrate it again: python main.py calibrate"
            )
        return points[name]


@dataclass(frozen=True)
class Calibration:
    """scores: one calibration per score, default first. erosion_mm: what is cut off the brain's edge."""

    scores: Mapping[str, ScoreCalibration]
    erosion_mm: float
    healthy: Mapping[str, Any]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every result of this calibration has to say about it, in plain sentences."""
        return tuple(self.healthy.get("warnings", ()))

    def score(self, name: str) -> ScoreCalibration:
        """Raises InvalidSettings that lists the calibrated scores."""
        if name not in self.scores:
            raise InvalidSettings(f"expected a score out of {', '.join(self.scores)}, got {name!r}")
        return self.scores[name]

    def save(self, folder: Path) -> None:
        """calibration.json for people and thresholds, calibration.safetensors for the voxel maps (half precision)."""
        tensors, entries = {}, {}
        for name, calibration in self.scores.items():
            tensors |= {f"{name}/{part}": values for part, values in calibration.statistics.packed().items()}
            entries[name] = {
                "points": {
                    smoothing: {point: value.to_json() for point, value in table.items()}
                    for smoothing, table in calibration.points.items()
                },
                "scan_scores": {key: list(value) for key, value in calibration.scan_scores.items()},
                "tails": {key: list(value) for key, value in calibration.tails.items()},
                "bounds": {
                    key: [{"ml": limit, "threshold": value} for limit, value in table.items()]
                    for key, table in calibration.bounds.items()
                },
                "drift": {key: value.to_json() for key, value in calibration.drift.items()},
            }
        save_file(tensors, str(folder / _TENSORS))
        record = {"version": 1, "erosion_mm": self.erosion_mm, "healthy": dict(self.healthy), "scores": entries}
        (folder / _JSON).write_text(_NUMBERS.sub(_on_one_line, json.dumps(record, indent=1)) + "\n")

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the calibration of a folder whose weights are replaced: it does not hold for others."""
        for name in (_JSON, _TENSORS):
            (folder / name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Raises CorruptModel when a file is missing or incomplete, or has values of another kind than it should."""
        try:
            record = json.loads((folder / _JSON).read_text())
            tensors = load_file(str(folder / _TENSORS))
            scores = {
                name: ScoreCalibration(
                    VoxelStatistics.unpacked(
                        {key.partition("/")[2]: v for key, v in tensors.items() if key.partition("/")[0] == name}
                    ),
                    {
                        smoothing: {point: OperatingPoint.from_json(value) for point, value in table.items()}
                        for smoothing, table in entry["points"].items()
                    },
                    {key: numbers(value) for key, value in entry["scan_scores"].items()},
                    {key: numbers(value) for key, value in entry.get("tails", {}).items()},
                    {
                        key: {float(row["ml"]): float(row["threshold"]) for row in table}
                        for key, table in entry.get("bounds", {}).items()
                    },
                    {key: DriftReference.from_json(value) for key, value in entry.get("drift", {}).items()},
                )
                for name, entry in record["scores"].items()
            }
            healthy = record["healthy"]
            if not isinstance(healthy, Mapping) or not all(isinstance(w, str) for w in healthy.get("warnings", ())):
                raise TypeError("healthy")
            return cls(scores, float(record["erosion_mm"]), healthy)
        except (OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
            raise CorruptModel(
                f"expected a complete calibration in the model folder {folder.name}, got {type(error).__name__}; "
                "run `python main.py calibrate` for it or restore the folder"
            ) from error


def _on_one_line(numbers: re.Match[str]) -> str:
    return "[" + ", ".join(numbers[0][1:-1].replace(",", " ").split()) + "]"


def calibrated_map(
    raw: np.ndarray,
    brain_mask: np.ndarray,
    statistics: VoxelStatistics,
    *,
    score: str,
    smoothing: str,
    erosion_mm: float,
    spacing_mm: float = 2.0,
) -> np.ndarray:
    """Standardise, smooth, cut the brain's edge: (X, Y, Z) float32, not below 0, 0 where nothing is analysed.

    A two-sided score is smoothed with its sign and made absolute afterwards, so that noise of both signs cancels.
    Statistics of depth 1 come from single slices and hold for every level given; then each level is smoothed and cut
    in its plane, as those slices were, or its noise would be less than theirs. Raises InvalidSettings for an unknown
    smoothing.
    """
    if smoothing not in SMOOTHING_MM:
        raise InvalidSettings(f"expected a smoothing out of {', '.join(SMOOTHING_MM)}, got {smoothing!r}")
    in_plane = statistics.mean.shape[2] == 1
    spacing = (spacing_mm, spacing_mm, np.inf if in_plane else spacing_mm)
    values = statistics.standardize(raw, brain_mask)
    sigma_mm = math.sqrt(max(0.0, SMOOTHING_MM[smoothing] ** 2 - SMOOTHED_MM.get(score, 0.0) ** 2))
    values = gaussian_smooth(values, brain_mask, sigma_mm=sigma_mm, spacing_mm=spacing)
    if score in TWO_SIDED:
        values = np.abs(values)
    inside = analysed_mask(brain_mask, erosion_mm, spacing_mm, in_plane=in_plane)
    return np.where(inside, np.maximum(values, 0), 0).astype(np.float32)


def analysed_mask(
    brain_mask: np.ndarray, erosion_mm: float, spacing_mm: float = 2.0, *, in_plane: bool = False
) -> np.ndarray:
    """The voxels that are scored: the brain without a rim where masks and alignment are least certain.

    in_plane: each axial level by itself, as for a single slice.
    """
    if erosion_mm <= 0:
        return brain_mask
    mask = np.ascontiguousarray(brain_mask) > 0
    return _eroded(mask.tobytes(), mask.shape, float(erosion_mm), float(spacing_mm), in_plane).copy()


@lru_cache(maxsize=16)
def _eroded(voxels: bytes, shape: tuple[int, ...], erosion_mm: float, spacing_mm: float, in_plane: bool) -> np.ndarray:
    """Kept for a few brains: one look at a finding needs the same rim several times, a calibration each many times."""
    mask = np.frombuffer(voxels, dtype=bool).reshape(shape)
    options = {"distance_mm": erosion_mm, "spacing_mm": (spacing_mm,) * 3}
    if in_plane:
        return np.concatenate([erode_brain(mask[..., i : i + 1], **options) for i in range(shape[2])], axis=2)
    return erode_brain(mask, **options)


def slice_score(anomaly_map: np.ndarray) -> float:
    """The anomaly score of a few levels analysed one by one: the mean of their scores, each as of a single slice.

    The mean, not the highest: the p-value compares it with healthy single slices.
    """
    used = np.flatnonzero(anomaly_map.any(axis=(0, 1)))
    return float(np.mean([scan_score(anomaly_map[..., level]) for level in used])) if len(used) else 0.0


def scan_score(anomaly_map: np.ndarray, *, voxel_mm3: float = 8.0) -> float:
    """The scan's anomaly score: the mean of the highest 2 ml of its calibrated map."""
    count = max(1, min(round(TOP_ML * 1000 / voxel_mm3), anomaly_map.size))
    return float(np.partition(anomaly_map.ravel(), -count)[-count:].mean())
