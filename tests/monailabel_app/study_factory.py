"""A small scan with a finding and the model it came from, as a study report takes them: no network, no files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from monailabel_app.calibration.calibrated_map import Calibration, ScoreCalibration
from monailabel_app.calibration.operating_points import OperatingPoint
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.types import Finding, GateReport, Volume

TABLE = tuple(np.linspace(0.5, 4.8, len(TAIL_SHARES)))
THRESHOLD = 2.0
SCORES = (1.0, 1.5, 2.5, 3.5)
FALSE_ML = (0.0, 0.1, 0.4, 9.0)
REGION = "left <b>frontal</b> white matter"
RAS = np.array([[2.0, 0, 0, -40], [0, 2, 0, -50], [0, 0, 2, -30], [0, 0, 0, 1]])
SHAPE = (40, 48, 36)
FLAT = np.array([[1.0, 0, 0, -30], [0, 1, 0, -35], [0, 0, 5, 0], [0, 0, 0, 1]])  # of a single slice


def study(
    folder: Path,
    corners=((8, 10, 10), (24, 30, 20)),
    *,
    shape=SHAPE,
    affine=RAS,
    values=(5.0, 3.0),
    reconstruction=True,
    false_volume_of="the whole scan",
    operating_point="balanced",
    warnings=(),
):
    """(volume, finding, model). corners: of the marked boxes of 4 voxels edge length, cut off at the scan's border."""
    box = tuple(slice(2, n - 2) if n > 1 else slice(None) for n in shape)
    brain = np.zeros(shape, bool)
    brain[box] = True
    rng = np.random.default_rng(0)
    scan = np.where(brain, 100 + 20 * rng.standard_normal(shape), 0).astype(np.float32)
    found = np.where(brain, 0.3, 0).astype(np.float32)
    for number, corner in enumerate(corners):
        part = tuple(slice(c, c + 4) for c in corner)
        found[part] = values[min(number, len(values) - 1)]
        found[tuple(c + (1 if n > 1 else 0) for c, n in zip(corner, shape, strict=True))] += 0.5
    found[~brain] = 0
    mask, lesions = find_lesions(
        found,
        brain,
        affine,
        threshold=THRESHOLD,
        regions=np.where(brain, 7, 0).astype(np.uint8),
        region_names={7: REGION},
    )
    point = OperatingPoint(0.01, THRESHOLD, 0.01, (0.005, 0.02), 0.03, len(SCORES), None, FALSE_ML, 9.0, 0.8)
    calibration = ScoreCalibration(None, {"standard": {"balanced": point}}, {"standard": SCORES}, {"standard": TABLE})
    custom = operating_point == "custom"
    finding = Finding(
        mask=mask,
        anomaly_map=found,
        brain_mask=brain,
        affine=affine,
        lesions=lesions,
        anomaly_score=3.0,
        p_value=0.4,
        threshold=THRESHOLD,
        model_id="tiny_t1",
        model_hash="ab" * 32,
        settings={"operating_point": operating_point, "score": "signed", "smoothing": "standard", "min_volume_ml": 0.1},
        seconds={"reconstruction": 1.25},
        steps=({"step": "read", "shape": list(shape)},),
        warnings=tuple(warnings),
        reconstruction=np.where(brain, 100, 0).astype(np.float32) if reconstruction else None,
        gate=GateReport(1.0, 0.5, 4.0, True),
        calibration={
            "kind": "shipped",
            "id": "shipped",
            "hash": "cd" * 32,
            "healthy_scans": len(SCORES),
            "data": "four heads",
            "healthy_rate": 0.01,
            "false_volume_ml": None if custom else 9.0,
            "false_volume_level": None if custom else 0.8,
            "false_volume_of": false_volume_of,
        },
    )
    model = SimpleNamespace(
        id="tiny_t1",
        hash="ab" * 32,
        modality="t1",
        description="a model for tests",
        meta={"method": "cold_diffusion"},
        folder=folder,
        calibration=Calibration({"signed": calibration}, 0.0, {}),
    )
    return Volume(scan[None], np.asarray(affine, dtype=np.float64)), finding, model
