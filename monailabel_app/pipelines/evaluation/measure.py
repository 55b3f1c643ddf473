"""One model on one set of prepared cases: counts per case, from which every figure of the table follows."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score
from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.case_histograms import count_voxels
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.metrics.voxelwise import dice
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.types import to_json

from ..analysis import Analysis
from ..healthy_reference import HealthyReference, level_statistics
from ..memory import peak_memory_mb, reset_peak_memory
from ..predict import AnomalyModel, PredictSettings, analyse
from .cases import CaseSet, PreparedCase, on_grid_of

POINT = "balanced"
MIN_VOLUME_ML = 0.1
_FEWEST_HEALTHY = 5
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """One way to read a model's maps. calibration: ``own`` or ``set`` (the healthy scans of the set itself)."""

    score: str
    smoothing: str
    calibration: str

    @property
    def name(self) -> str:
        """``signed/standard/own``."""
        return f"{self.score}/{self.smoothing}/{self.calibration}"


@dataclass(frozen=True)
class Measurement:
    """A model on a set. record: JSON, one entry per protocol; counts: (cases, 2, BINS) int32 by protocol."""

    record: dict[str, Any]
    counts: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write ``path``.json and ``path``.safetensors; the first is there only when both are whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.from_numpy(values) for name, values in self.counts.items()}
        save_file(tensors, str(path.with_suffix(".safetensors")))
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(to_json(self.record), indent=1) + "\n")
        partial.replace(path.with_suffix(".json"))

    @classmethod
    def load(cls, path: Path) -> Measurement | None:
        """None where there is none."""
        if not path.with_suffix(".json").is_file():
            return None
        record = json.loads(path.with_suffix(".json").read_text())
        counts = {name: values.numpy() for name, values in load_file(str(path.with_suffix(".safetensors"))).items()}
        return cls(record, counts)


def measure(
    model: AnomalyModel,
    cases: CaseSet,
    *,
    scores: Sequence[str] = (),
    smoothings: Sequence[str] = ("standard",),
    device: str = "cpu",
    progress: Progress | None = None,
) -> Measurement:
    """Analyse every scan of a set once and count what each score makes of it (default: the model's first score).

    A model that was calibrated on the set's healthy scans meets them, and cases made from them, with statistics and
    thresholds that leave that person out. Another one is read with its own calibration, and beside it with one made
    from the set's healthy scans. What a model does not analyse counts as not marked. Masks are the product's:
    components below 0.1 ml are dropped.
    """
    if not len(cases.cases):
        raise EvaluationFailed(f"expected at least one case in {cases.name}, got none")
    gc.collect()  # what the model before this one has left is not this one's memory
    total = len(cases.healthy) + len(cases.cases)
    clock = _Clock(model, device, lambda done: progress(done, total) if progress else None)
    healthy = [clock.analyse(case) for case in cases.healthy]
    reference = HealthyReference(model, healthy) if len(healthy) >= _FEWEST_HEALTHY else None
    readers = {
        protocol.name: _Reader(model, protocol, reference, cases)
        for score in scores or model.scores[:1]
        for smoothing in smoothings
        for protocol in _protocols(model, score, smoothing, reference)
    }
    for case, scan in zip(cases.healthy, healthy, strict=True):
        for reader in readers.values():
            reader.add_healthy(case, scan)
    for case in cases.cases:
        scan = clock.analyse(case)
        for reader in readers.values():
            reader.add(case, scan)
    record = {
        "model": {
            "id": model.id,
            "hash": model.hash,
            "method": str(model.meta["method"]),
            "modality": model.modality,
        },
        "set": {"name": cases.name, "key": cases.key, "title": cases.title},
        "default": f"{model.scores[0]}/{smoothings[0]}/",
        "device": device,
        "threads": torch.get_num_threads(),
        **clock.figures(),
        "seconds_to_prepare": float(np.median([case.seconds for case in cases.cases])),
        "protocols": {name: reader.record() for name, reader in readers.items()},
    }
    return Measurement(record, {name: np.stack(reader.counts) for name, reader in readers.items()})


def _protocols(model: AnomalyModel, score: str, smoothing: str, reference: HealthyReference | None) -> list[Protocol]:
    if reference is None or reference.same_scans(score):
        return [Protocol(score, smoothing, "own")]
    return [Protocol(score, smoothing, "own"), Protocol(score, smoothing, "set")]


class _Reader:
    """Reads all analyses of a set by one protocol."""

    def __init__(
        self, model: AnomalyModel, protocol: Protocol, reference: HealthyReference | None, cases: CaseSet
    ) -> None:
        self._model, self._protocol, self._level = model, protocol, cases.level
        same = reference is not None and reference.same_scans(protocol.score)
        self._reference = reference if same or protocol.calibration == "set" else None
        self._left_out = same
        self._thresholds: dict[int | None, float] = {}
        self._cases: list[dict[str, Any]] = []
        self._healthy: list[dict[str, Any]] = []
        self.counts: list[np.ndarray] = []

    def add_healthy(self, case: PreparedCase, scan: Analysis) -> None:
        """Count what is marked in a healthy scan: all of it is false."""
        values, mask = self._read(case, scan)
        found = count_lesions(mask, np.zeros_like(mask))
        self._healthy.append(
            {
                "id": case.id,
                "patient": case.patient,
                "scan_score": scan_score(values),
                "false_ml": self._ml(mask, case),
                "false_positives": found.predicted,
            }
        )

    def add(self, case: PreparedCase, scan: Analysis) -> None:
        """Count a case with lesions."""
        values, mask = self._read(case, scan)
        found = count_lesions(mask & case.counted, case.gt_mask)
        looked_at = on_grid_of(case, scan.prepared.brain_mask, scan.prepared) > 0.5
        self.counts.append(count_voxels(values, case.gt_mask, case.counted))
        self._cases.append(
            {
                "id": case.id,
                "patient": case.patient,
                **case.details,
                "dice": dice(mask & case.counted, case.gt_mask),
                "lesions": found.lesions,
                "detected": found.detected,
                "false_positives": found.false_positives,
                "analysed_share": float(looked_at[case.gt_mask].mean()) if case.gt_mask.any() else None,
                "scan_score": scan_score(values),
            }
        )

    def record(self) -> dict[str, Any]:
        """The protocol and everything counted, for JSON."""
        return {
            "score": self._protocol.score,
            "smoothing": self._protocol.smoothing,
            "calibration": self._protocol.calibration,
            "leave_one_out": self._left_out,
            "threshold": float(np.mean(list(self._thresholds.values()))),
            "cases": self._cases,
            "healthy": self._healthy,
        }

    def _read(self, case: PreparedCase, scan: Analysis) -> tuple[np.ndarray, np.ndarray]:
        """The calibrated map and the mask of the ``balanced`` operating point."""
        protocol, prepared = self._protocol, scan.prepared
        if self._reference is not None and not len(self._cases) and case.scan is not None and not case.gt_mask.any():
            values = self._reference.maps(protocol.score, protocol.smoothing)[case.scan]
        elif self._reference is not None:
            values = self._reference.map_of(scan, protocol.score, protocol.smoothing, without=case.scan)
        else:
            statistics = self._model.calibration.score(protocol.score).statistics
            values = calibrated_map(
                scan.raw(protocol.score),
                prepared.brain_mask,
                level_statistics(statistics, prepared.brain_mask.shape, self._level),
                score=protocol.score,
                smoothing=protocol.smoothing,
                erosion_mm=self._model.calibration.erosion_mm,
            )
        mask, _ = find_lesions(
            values,
            prepared.brain_mask,
            prepared.model_affine,
            threshold=self._threshold(case.scan),
            min_volume_mm3=MIN_VOLUME_ML * 1000,
        )
        return np.maximum(on_grid_of(case, values, prepared), 0), on_grid_of(case, mask, prepared) > 0.5

    def _threshold(self, without: int | None) -> float:
        if without not in self._thresholds:
            score, smoothing = self._protocol.score, self._protocol.smoothing
            self._thresholds[without] = (
                self._reference.threshold(score, smoothing, point=POINT, without=without)
                if self._reference is not None
                else self._model.calibration.score(score).points[smoothing][POINT].threshold
            )
        return self._thresholds[without]

    @staticmethod
    def _ml(mask: np.ndarray, case: PreparedCase) -> float:
        return float(mask.sum()) * float(abs(np.linalg.det(case.prepared.model_affine[:3, :3]))) / 1000


class _Clock:
    """Runs the analyses, and what each costs."""

    def __init__(self, model: AnomalyModel, device: str, tell: Callable[[int], None]) -> None:
        self._model, self._settings, self._tell = model, PredictSettings(device=device), tell
        self._wall: list[float] = []
        self._busy: list[float] = []
        self._peak = 0.0

    def analyse(self, case: PreparedCase) -> Analysis:
        """Run the model on a prepared case."""
        reset_peak_memory(self._settings.device)
        wall, busy = time.perf_counter(), time.process_time()
        scan = analyse(case.cut or case.prepared, self._model, self._settings)
        self._wall.append(time.perf_counter() - wall)
        self._busy.append(time.process_time() - busy)
        self._peak = max(self._peak, peak_memory_mb(self._settings.device))
        self._tell(len(self._wall))
        return scan

    def figures(self) -> dict[str, float]:
        """Medians over scans, and the largest peak."""
        return {
            "seconds_to_analyse": float(np.median(self._wall)),
            "processor_seconds_to_analyse": float(np.median(self._busy)),
            "peak_memory_mb": self._peak,
        }
