"""Measurements as the engine records them, made from small random maps: no model, no scan."""

import numpy as np

from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.metrics.case_histograms import count_voxels
from monailabel_app.metrics.lesionwise import count_lesions
from monailabel_app.metrics.rodeo import rodeo_boxes
from monailabel_app.metrics.voxelwise import dice
from monailabel_app.pipelines.evaluation.measure import Measurement

SHAPE = (14, 14, 10)
POINT_SHARES = {"sensitive": 0.05, "balanced": 0.01, "specific": 0.001, "bounded": 0.004}
VOXEL_ML = 0.008


def truth_of(case: int) -> np.ndarray:
    """Two lesions at places and of sizes that the case's number decides."""
    generator = np.random.default_rng(1000 + case)
    truth = np.zeros(SHAPE, bool)
    for _ in range(2):
        corner = generator.integers(1, 8, size=3) * (1, 1, 0.6)
        size = generator.integers(2, 5, size=3)
        truth[tuple(slice(int(c), int(c + s)) for c, s in zip(corner, size, strict=True))] = True
    return truth


def map_of(model: int, case: int, truth: np.ndarray, contrast: float) -> np.ndarray:
    """Scores of a model on a scan; the anatomy, which is the same for all, is part of the noise."""
    anatomy = np.random.default_rng(case).gamma(1.0, size=SHAPE)
    noise = np.random.default_rng([model, case]).gamma(1.0, size=SHAPE)
    return (0.5 * anatomy + 0.5 * noise + contrast * truth).astype(np.float32)


def made(
    model_id: str,
    method: str,
    contrast: float,
    *,
    cases: int = 8,
    healthy: int = 6,
    set_name: str = "made_t1",
    modality: str = "t1",
    seed: int = 0,
    first_case: int = 0,
    calibration="own",
    **about,
) -> Measurement:
    """A whole record of one protocol: every operating point, FROC counts and healthy histograms."""
    well = [map_of(seed, 500 + i, np.zeros(SHAPE, bool), 0.0) for i in range(healthy or 4)]
    pooled = np.concatenate([values.ravel() for values in well])
    thresholds = {name: float(np.quantile(pooled, 1 - share)) for name, share in POINT_SHARES.items()}
    tails = [float(np.quantile(pooled, 1 - share)) for share in TAIL_SHARES]
    everywhere = np.ones(SHAPE, bool)
    kind = calibration["kind"] if isinstance(calibration, dict) else calibration
    name = f"signed/standard/{kind}"
    ill, counts = [], []
    for i in range(first_case, first_case + cases):
        truth = truth_of(i)
        values = map_of(seed, i, truth, contrast)
        counts.append(count_voxels(values, truth, everywhere))
        found = [count_lesions(values > at, truth) for at in tails]
        ill.append(
            {
                "id": f"case{i}",
                "patient": f"patient{i}",
                "attributes": {"sex": "fm"[i % 2], "age": 40 + i},
                "volume_ml": float(truth.sum()) * VOXEL_ML,
                "native_lesions": 2,
                "native_ml": float(truth.sum()) * VOXEL_ML,
                "scan_score": float(np.sort(values.ravel())[-50:].mean()),
                "p_value": 0.1,
                "points": {point: _point(values > at, truth, at) for point, at in thresholds.items()},
                "froc": {
                    "detected": [c.detected for c in found],
                    "false_positives": [c.false_positives for c in found],
                },
                "analysed_share": 1.0,
            }
        )
    nothing = np.zeros(SHAPE, bool)
    clean = [
        {
            "id": f"healthy{i}",
            "patient": f"well{i}",
            "attributes": {"sex": "mf"[i % 2], "age": 50 + i},
            "scan_score": float(np.sort(values.ravel())[-50:].mean()),
            "p_value": 0.5,
            "points": {
                point: {
                    "false_ml": float((values > at).sum()) * VOXEL_ML,
                    "false_positives": count_lesions(values > at, nothing).predicted,
                }
                for point, at in thresholds.items()
            },
            "froc_false_positives": [count_lesions(values > at, nothing).predicted for at in tails],
        }
        for i, values in enumerate(well[:healthy])
    ]
    record = {
        "model": {"id": model_id, "hash": f"{seed:064x}", "method": method, "modality": modality},
        "set": {"name": set_name, "key": f"key of {set_name}", "title": f"Made up: {set_name}", "modality": modality}
        | about,
        "default": "signed/standard/",
        "seconds_to_analyse": 1.5,
        "processor_seconds_to_analyse": 0.5,
        "seconds_to_prepare": 3.0,
        "peak_memory_mb": 900.0,
        "protocols": {
            name: {
                "score": "signed",
                "smoothing": "standard",
                "calibration": calibration,
                "leave_one_out": False,
                "froc_thresholds": tails,
                "cases": ill,
                "healthy": clean,
            }
        },
    }
    rows = [count_voxels(values, nothing, everywhere)[1] for values in well[:healthy]]
    return Measurement(record, {name: np.stack(counts)}, {name: np.stack(rows)} if rows else {})


def _point(mask: np.ndarray, truth: np.ndarray, threshold: float) -> dict:
    counts = count_lesions(mask, truth)
    return {
        "threshold": threshold,
        "marked_ml": float(mask.sum()) * VOXEL_ML,
        "dice": dice(mask, truth),
        "lesions": counts.lesions,
        "detected": counts.detected,
        "false_positives": counts.false_positives,
        "false_ml": float((mask & ~truth).sum()) * VOXEL_ML,
        "rodeo": rodeo_boxes(mask, truth, (2.0, 2.0, 2.0)).to_json(),
    }


def four_models(**more) -> list[Measurement]:
    """A good model, both baselines and a DDPM that is no better than the atlas."""
    return [
        made("good_t1", "cold_diffusion", 3.0, seed=1, **more),
        made("intensity_t1", "intensity", 0.6, seed=2, **more),
        made("atlas_zscore_t1", "atlas_zscore", 1.2, seed=3, **more),
        made("ddpm_t1", "ddpm", 1.2, seed=4, **more),
    ]
