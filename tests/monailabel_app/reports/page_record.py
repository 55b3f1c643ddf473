"""A made-up evaluation record in the form of evaluation.json: many models, several sets, all parts of the page."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
from PIL import Image

_METHODS = ("ddpm", "cold_diffusion", "latent_ddpm", "patched_ddpm", "feature_autoencoder", "denoising_autoencoder")
_POINTS = {"sensitive": 0.05, "balanced": 0.01, "specific": 0.001, "bounded": "2 ml"}


def picture(shade: int = 90, size: tuple[int, int] = (60, 40)) -> bytes:
    """A small PNG."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(stream, "PNG")
    return stream.getvalue()


def figure(value: float, spread: float = 0.05, *, interval: bool = True, **more: Any) -> dict[str, Any]:
    return {"value": value, "interval": [value - spread, value + spread] if interval else None, **more}


def evaluation_record(models: int = 6, sets: int = 2, *, healthy: int = 20, seed: int = 3) -> dict[str, Any]:
    """models: trained ones, beside the two baselines, on every set. The last set of several has no healthy scans."""
    entries = []
    for index in range(sets):
        count = 0 if index == sets - 1 and sets > 1 else healthy
        entries.append(_set(index, models, count, np.random.default_rng(seed + index)))
    record = {
        "version": 1,
        "made": {"time": "2026-11-21T23:10:00+00:00", "app_version": "0.1.0", "command": "evaluate --data dev"},
        "resamples": 2000,
        "protocols_explained": {"differences": "Model minus baseline on the same patients."},
        "sets": entries,
        "failed": [{"model": "broken_t1", "set": "set_0", "error": "expected 3 arrays, got 2"}],
    }
    return json.loads(json.dumps(record))  # plain JSON, as it comes from a file


def _set(index: int, models: int, healthy: int, generator: np.random.Generator) -> dict[str, Any]:
    prevalence = 0.012
    names = [(f"{_METHODS[i % len(_METHODS)]}_{i}_t1", _METHODS[i % len(_METHODS)]) for i in range(models)]
    names += [("intensity_t1", "intensity"), ("atlas_zscore_t1", "atlas_zscore")]
    rows, curves, distributions = [], {}, {}
    for name, method in names:
        ap = float(generator.uniform(0.1, 0.6))
        rows.append(_row(name, method, ap, healthy, prevalence, generator))
        recall = np.linspace(0.02, 0.95, 40)
        alarms = np.expm1(recall * 3.5) * generator.uniform(0.4, 1.2)
        curves[name] = {
            "froc": [[float(x), float(y)] for x, y in zip(alarms, recall, strict=True)],
            "pr": [[float(r), float(prevalence + (1 - prevalence) * (1 - r) ** (1 / ap - 0.9))] for r in recall],
        }
        if healthy:
            distributions[name] = {
                "healthy_false_ml": {p: list(map(float, generator.gamma(1, 8, healthy))) for p in _POINTS},
                "scan_scores": {
                    "healthy": list(map(float, generator.normal(2, 0.5, healthy))),
                    "cases": list(map(float, generator.normal(2 + 2 * ap, 0.9, 40))),
                },
            }
    return {
        "name": f"set_{index}",
        "title": f"Lesions of kind {index} in heads of another scanner",
        "modality": "t1",
        "split": "val",
        "key": hashlib.sha256(f"set {index}".encode()).hexdigest(),
        "licence": "CC BY-SA 3.0",
        "cases": 40,
        "healthy": healthy,
        "prevalence": prevalence,
        "skipped": [{"id": "scan_007", "reason": "expected a finite image, got NaN"}] if index == 0 else [],
        "default_model": names[0][0] if index == 0 else None,
        "rows": rows,
        "curves": curves,
        "distributions": distributions,
        "examples": [
            {"model": names[0][0], "id": f"scan_{i}", "kind": kind, "dice": dice, "volume_ml": 4.2 + i,
             "picture": f"{i + 4 * index}.png"}
            for i, (kind, dice) in enumerate([("best", 0.81), ("best", 0.77), ("worst", 0.05), ("worst", 0.0)])
        ],
    }  # fmt: skip


def _row(
    name: str, method: str, ap: float, healthy: int, prevalence: float, generator: np.random.Generator
) -> dict[str, Any]:
    points = {}
    for step, (point, target) in enumerate(_POINTS.items()):
        shrink = 0.6**step
        figures = {
            "dice": figure(ap * 0.6),
            "recall": figure(min(1.0, ap * 1.5 * shrink)),
            "false_positives_per_scan": figure(14.0 * shrink, 2.0),
            "volume_error_ml": figure(9.0 * shrink, 1.0),
            "volume_bias_ml": figure(3.0 * shrink - 1, 1.0),
            "rodeo": figure(ap * 0.4),
            "rodeo_localisation": figure(ap * 0.5),
            "rodeo_shape": figure(ap * 0.3),
        }
        if healthy:
            figures["healthy_false_ml"] = figure(20.0 * shrink, 4.0)
        points[point] = {"threshold": 1.0 + step, "target": target, "figures": figures}
    figures = {
        "pooled_ap": figure(ap),
        "mean_case_ap": figure(ap * 0.8),
        "best_dice_oracle": figure(ap * 0.9),
        "prevalence": figure(prevalence, 0.001),
        "analysed_share": figure(0.99, 0.005),
    }
    if healthy:
        figures["scan_auroc"] = figure(0.6 + 0.4 * ap)
    baseline = method in ("intensity", "atlas_zscore")
    gap = ap - 0.35
    answer = "yes" if gap > 0.05 else "no" if gap < -0.05 else "unclear"
    difference = {"reference": "atlas_zscore_t1", "pooled_ap": figure(gap, p_value=None)}
    difference["mean_case_ap"] = figure(gap * 0.8, p_value=float(generator.uniform(0, 0.2)))
    return {
        "model": name,
        "hash": hashlib.sha256(name.encode()).hexdigest(),
        "method": method,
        "modality": "t1",
        "calibration": {"id": None, "kind": "own", "scans": 20},
        "score": "signed",
        "smoothing": "standard",
        "default": True,
        "leave_one_out": False,
        "figures": figures,
        "points": points,
        "thresholds": {
            "healthy_point": {"threshold": 2.0, "dice": figure(ap * 0.6)},
            "healthy_quantile": {"quantile": 0.995, "threshold": 2.2, "dice": figure(ap * 0.62)},
            "label_tuned": {
                "thresholds": [2.9, 3.1],
                "dice": figure(ap * 0.8),
                "tuned_on": "other half of the patients",
            },
        },
        "differences": {} if baseline else {"best_baseline": difference, "atlas": difference},
        "verdict": {
            "beats_intensity": None if baseline else answer,
            "beats_atlas": None if baseline else answer,
            "sentence": f"AP {ap:.3f}: {answer} beside atlas_zscore_t1.",
        },
        "seconds_to_analyse": 2.5,
        "peak_memory_mb": 1400.0,
    }
